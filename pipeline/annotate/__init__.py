"""The annotate job: from a manifest and a model to an output whose books close.

`config` declares the settings, `run` is the job, `graph` the Ray Data graph. `manifest` opens what is to be done,
`pending` finds what is left of it, `stages` are what Ray maps. Imports the shared floors, and no other job.
"""
