"""All errors that a user can fix.

BitfleetError                  exit code 2, one line, no traceback
├── InputError                 an option, a file or a prompt list can't be used
├── RedisUnavailableError      no Redis answers at the URL
├── RunMismatchError           settings, model or protocol are not those of the run
├── ModelUnavailableError      a checkpoint is missing, gated or not usable
├── MachineTooSmallError       this machine has too little memory for the run
├── TaskRefusedError           this worker will not run the job
│   └── OverflowsError         the model's output is not finite
│   └── TooLargeError          its shard is larger than any store takes
├── UnknownKindError           this revision does not know the task's kind
├── LeaseLostError             the job now belongs to another worker
├── FolderLostError            another machine has taken over the calibration folder
├── SampleError                a sample or a manifest can't be read
└── StoreError                 the shard store can't be used
    ├── StoreFullError         the store has no room until something is collected
    ├── StoreTroubleError      the store can't be reached, read or written at the moment
    ├── WrongStoreError        this is not the store that the run was enqueued with
    └── ShardCorruptError      a shard or a record is damaged
"""


class BitfleetError(Exception):
    """Base of all errors that a user can fix. The message says what is wrong, where, and how to fix it."""

    exit_code = 2


class InputError(BitfleetError):
    """An option, a file or a prompt list can't be used."""


class RedisUnavailableError(BitfleetError):
    """No Redis answers at the URL."""


class RunMismatchError(BitfleetError):
    """Settings, model or protocol are not those of the run."""


class ModelUnavailableError(BitfleetError):
    """A checkpoint is missing, gated or not usable."""


class MachineTooSmallError(BitfleetError):
    """This machine has too little memory for the run."""


class TaskRefusedError(BitfleetError):
    """This worker will not run the job."""


class TooLargeError(TaskRefusedError):
    """A shard or a blob is larger than any store takes. Trying again does not help."""


class OverflowsError(TaskRefusedError):
    """The model's output is not finite."""


class UnknownKindError(BitfleetError):
    """This revision does not know the task's kind."""


class LeaseLostError(BitfleetError):
    """The job now belongs to another worker, because this one slept or was cut off."""


class FolderLostError(BitfleetError):
    """Another machine has taken over the calibration folder, because this one slept or was cut off."""


class SampleError(BitfleetError):
    """A sample or a manifest can't be read."""


class StoreError(BitfleetError):
    """The shard store can't be used."""


class StoreFullError(StoreError):
    """The store has no room until something is collected."""


class StoreTroubleError(StoreError):
    """The store can't be reached, read or written at the moment, for example because a disk is full."""


class WrongStoreError(StoreError):
    """This is not the store that the run was enqueued with."""


class ShardCorruptError(StoreError):
    """A shard or a record is damaged."""
