"""The training job: fine-tuning on COCO files and on outputs of the annotate job.

`config` declares the settings, `run` is the job, `worker` what each worker of Ray Train does, `feed` its batches from
Ray Data. `data` reads labels, `sample` is one augmented image, `loop` the training itself; targets and losses are the
detector's, in `pipeline.model`. Imports the shared floors, and no other job.
"""
