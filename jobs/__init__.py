"""Entry points: each parses a command line, calls the pipeline, and sets the exit code."""
