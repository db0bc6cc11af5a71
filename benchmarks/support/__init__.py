"""What benchmarks share: the machine's description, models of random weights, stand-ins."""
