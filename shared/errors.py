"""Everything that can go wrong in a way a user can mend.

BitfleetError                  exit code 2, one line, no traceback
├── InputError                 an option, a file or a prompt list that can't be used
├── RedisUnavailableError      no Redis answers at the URL
├── RunMismatchError           settings, model or protocol differ from the run's
├── ModelUnavailableError      a checkpoint is missing, gated or of another kind
├── MachineTooSmallError       what a run needs in memory, this machine doesn't have
├── TaskRefusedError           a job that this worker will not run
├── UnknownKindError           a task of a kind that this revision does not know
├── ClockError                 this machine's clock differs from that of Redis
├── LeaseLostError             the job was given to another worker meanwhile
├── SampleError                a sample or a manifest that can't be read
└── StoreError                 the shard store can't be used
    ├── StoreTroubleError      it can't be reached, read or written just now
    ├── WrongStoreError        not the store that the run was enqueued for
    └── ShardCorruptError      a shard that differs from its record
"""


class BitfleetError(Exception):
    """Base of all errors a user can mend; the message says what, which one, and how."""

    exit_code = 2


class InputError(BitfleetError):
    """An option, a file or a prompt list that can't be used."""


class RedisUnavailableError(BitfleetError):
    """No Redis answers at the URL."""


class RunMismatchError(BitfleetError):
    """Settings, model or protocol differ from the run's."""


class ModelUnavailableError(BitfleetError):
    """A checkpoint is missing, gated or of another kind."""


class MachineTooSmallError(BitfleetError):
    """What a run needs in memory, this machine doesn't have."""


class TaskRefusedError(BitfleetError):
    """A job that this worker will not run."""


class UnknownKindError(BitfleetError):
    """A task of a kind that this revision does not know."""


class ClockError(BitfleetError):
    """This machine's clock differs from that of Redis."""


class LeaseLostError(BitfleetError):
    """The job was given to another worker while this one slept or was cut off."""


class SampleError(BitfleetError):
    """A sample or a manifest that can't be read."""


class StoreError(BitfleetError):
    """The shard store can't be used."""


class StoreTroubleError(StoreError):
    """It can't be reached, read or written just now: a share away, a disk full."""


class WrongStoreError(StoreError):
    """Not the store that the run was enqueued for."""


class ShardCorruptError(StoreError):
    """A shard that differs from its record."""
