"""Bytes to RGB uint8, and the exact resize."""
