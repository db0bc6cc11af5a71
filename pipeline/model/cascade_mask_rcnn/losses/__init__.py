"""Targets and losses of Cascade Mask R-CNN."""
