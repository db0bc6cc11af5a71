"""What tests and benchmarks share: an S3 server, a small model, reference masks."""
