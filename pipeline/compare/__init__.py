"""Outputs of the annotate job compared: what changed in the labels."""
