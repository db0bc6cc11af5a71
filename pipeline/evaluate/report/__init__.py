"""The report of an evaluation that people read: one HTML file that needs nothing else."""
