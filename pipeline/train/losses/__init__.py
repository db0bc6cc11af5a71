"""Targets and losses of the detector."""
