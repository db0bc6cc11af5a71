"""Cascade Mask R-CNN with a Swin backbone in plain PyTorch: no Ray, and no file I/O but checkpoints.py."""
