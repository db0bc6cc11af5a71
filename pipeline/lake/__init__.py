"""Tables of Delta and Iceberg: what an output is published to, and what a manifest may be."""
