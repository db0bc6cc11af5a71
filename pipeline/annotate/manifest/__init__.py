"""Manifests of all kinds: opened, checked, and dealt into units that can be read by row."""
