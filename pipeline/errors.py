"""The tree of errors. A job catches its two roots and knows its exit code::

    UserError (ValueError)              a configuration or an input that cannot be used: exit code 2, mend it first
      ConfigError                       settings
      UriError, AccessDenied            a URI; one that the policy does not allow
      StorageError                      a file or folder that cannot be read
      DownloadError, UnknownModelError  a public model that cannot be fetched; a name that no model has
      CheckpointError, LayoutError,     weights; those of a backbone alone
        BackboneOnlyError
      ManifestError, DuplicateIdError   a manifest
      OutputError, IdentityMismatch,    an output folder; a file in it that is none of ours, or not as it was written
        NotParquet, TooLarge, Damaged
      ForeignFolder, InTheWay           a folder to write in that is somebody else's; a file there that is
      InputError, BadRow, DataError     COCO files; one element of them; what training learns from
      ExportError                       an export
      ClusterError                      a cluster that has no room for the job, or is not there
      ImageError                        the bytes of one picture
    RunError (RuntimeError)             the run failed, though nothing is wrong with what it was given: exit code 1,
                                        the same command may be tried again
      RunFailed, TrainingFailed         books that do not close; a worker that died
      NonFiniteLoss, ModelNotFinite,    a training that diverged; a model that computes NaN; a GPU that is gone
        DeviceLost
      LockHeld, LockLost                another run is at work in the folder
      RayNotStarted, NoGpus             Ray did not start in time; no GPU came in the time given for it
      FetchError, NoRoom, Changed       one picture that could not be fetched, or not yet; a file that another writer
                                        replaced

Each class stands in the module that raises it. Messages say where, why and what to do, and hold no secrets.
"""

from __future__ import annotations


class UserError(ValueError):
    """A configuration or an input that cannot be used: exit code 2. The message says what to do."""


class RunError(RuntimeError):
    """The run failed: exit code 1. What it wrote is kept, and the same command may be tried again."""
