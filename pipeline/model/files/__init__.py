"""Files and names of weights: checkpoints, backbones, where published ones lie, class names."""
