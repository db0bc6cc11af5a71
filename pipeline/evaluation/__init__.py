"""COCO evaluation of an output against ground truth: sharded by image, exact to pycocotools, bounded in memory."""
