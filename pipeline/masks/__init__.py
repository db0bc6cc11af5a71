"""Soft masks and boxes to COCO RLE, and back. Plain numpy; knows nothing of Ray or of the model."""
