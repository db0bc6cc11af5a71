"""Commands that check a whole: the house, real images, overfitting, self-training, complexity."""
