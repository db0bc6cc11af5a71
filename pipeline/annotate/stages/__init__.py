"""What happens to a block of images: fetched and decoded, segmented, encoded, written. Plain callables; no Ray."""
