"""Detectors behind one seam: images in, boxes, scores, labels and soft masks out. No Ray.

`architecture` says what a kind of detector is to the project, `architectures` lists those that there are, and each has
a folder of its own. What is beside them serves any detector; files of weights are in `files`.
"""
