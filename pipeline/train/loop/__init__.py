"""Steps: optimiser, average, checkpoints, start points, telemetry, validation."""
