"""Training of the detector: targets, losses, augmentation, and the loop."""
