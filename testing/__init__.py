"""What tests and benchmarks share: servers, a browser, a small model, reference masks."""
