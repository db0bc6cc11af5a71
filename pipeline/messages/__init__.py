"""What people read: examples out of many, counts, durations, a line now and then. Standard library only."""
