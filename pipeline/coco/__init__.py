"""COCO's JSON: read as a stream, checked element by element, written. For evaluation, training, predict and export."""
