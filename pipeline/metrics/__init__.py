"""COCO's figures and what lies beyond them, on arrays: no file, no URI, no Ray."""
