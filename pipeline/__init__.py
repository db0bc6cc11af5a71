"""maskfleet: instance masks for huge image collections, on a Ray cluster."""
