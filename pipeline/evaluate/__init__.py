"""The evaluation job: an output or COCO results against a ground truth, at any scale.

`config` declares the settings, `run` is the job, `measure` the plan of its tasks. `inputs` reads both sides, `shuffle`
brings together what belongs together, `report` is the page. Imports the shared floors, and no other job.
"""
