"""Rendered scenes with exact masks, for the demo, training tests and benchmarks."""
