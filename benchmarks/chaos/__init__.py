"""Breaks the annotate job in seeded random ways and compares what is left with an undisturbed run.

``scene`` makes the input and drives the real job in subprocesses, ``kinds`` disturbs it, ``verdict`` compares.
"""
