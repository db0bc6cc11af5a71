"""Annotations in other tools' formats, whole or not at all. Imports the shared floors, and no other job."""
