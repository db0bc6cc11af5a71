"""One training sample: a picture with boxes and masks, its geometry, and a batch of them."""
