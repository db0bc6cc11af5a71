"""Breaks the annotate job in seeded random ways and compares with what its stages give undisturbed.

``scene`` makes the input and drives the real job in subprocesses, ``kinds`` disturbs it, ``verdict`` compares.
"""
