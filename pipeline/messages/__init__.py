"""What people read: examples out of many, durations, a line now and then. Standard library only."""
