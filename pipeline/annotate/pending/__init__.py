"""What is still to do: the anti-join of a manifest's ids and an output's, exact and in bounded memory."""
