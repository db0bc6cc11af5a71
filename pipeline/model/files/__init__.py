"""Files and names of weights: checkpoints, the layouts of published ones, the zoo, class names."""
