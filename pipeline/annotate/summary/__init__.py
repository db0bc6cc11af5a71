"""The page of an output that people read when a run has ended: ``summary.html``."""
