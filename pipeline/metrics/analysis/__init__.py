"""What a mean hides: outcomes, TIDE's errors, confusion, calibration, thresholds, the worst images."""
