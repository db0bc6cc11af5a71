"""A few pictures on this machine, without Ray."""
