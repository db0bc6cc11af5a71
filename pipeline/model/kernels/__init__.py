"""Operators of PyTorch's that detectors need and PyTorch lacks, each with a kernel for CPUs and one for CUDA.

Each is one opaque node to `torch.compile` and one call to a profiler, needs no wait of the host on CUDA, and takes
shapes of any size. `cuda` holds their kernels for GPUs, in Triton, and is imported when the first of them runs there:
all else works where there is no Triton.
"""
