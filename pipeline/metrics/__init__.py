"""COCO's figures and what lies beyond them, on arrays; records too many for memory lie in scratch files. No Ray."""
