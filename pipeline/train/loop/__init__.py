"""Steps: optimiser, average, checkpoints, start points, telemetry, validation; `settings` is without torch."""
