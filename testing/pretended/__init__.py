"""The parts of the pretended GPU; `testing.pretended_cuda` is the way in."""
