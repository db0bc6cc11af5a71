"""Predictions and ground truth, read, checked and paired image by image."""
