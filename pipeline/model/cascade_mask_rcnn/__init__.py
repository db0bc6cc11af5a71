"""Cascade Mask R-CNN with a Swin backbone: the network, its losses, its files and its cost, whole.

From outside, only `pipeline.model.architectures` imports it, and only `architecture` and `variants`, which are without
torch. It imports what all detectors share: `pipeline.model`, but neither that list nor what reads and writes files.
"""
