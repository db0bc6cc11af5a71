"""Pages that people read: one HTML file that needs nothing else, light or dark, on a laptop or a phone."""
