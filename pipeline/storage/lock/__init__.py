"""One run for each folder: a lease with a heartbeat, and the fence that every writer asks."""
