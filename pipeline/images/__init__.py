"""Image bytes to RGB uint8 pixels, and pixels to the model's input size. No Ray, no I/O."""
