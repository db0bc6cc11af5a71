"""Ray for every job: connecting, tasks on Ray Data, what workers log."""
