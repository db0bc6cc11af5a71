"""Which image is at which position of which epoch, and its labels: COCO files, pseudo-labels, their books."""
