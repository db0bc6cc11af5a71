"""The detector: torch, timm, torchvision; no Ray. Files of weights are in `files`."""
