"""Detections drawn on their pictures: colours, boxes, labels, masks, contact sheets."""
