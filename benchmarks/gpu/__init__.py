"""All that is worth knowing of the model on a machine with one GPU, in minutes: ``python -m benchmarks.gpu``."""
