"""Soft masks and boxes to COCO run lengths, equal to the reference to the byte; no image-sized mask anywhere."""
