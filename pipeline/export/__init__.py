"""An output of the annotate job in the formats of other tools, streamed: memory does not grow with the images."""
