"""What happens to a block of images: fetched and decoded, segmented, encoded. Plain callables; no Ray."""
