"""The `worker` command on a machine whose public models are tiny ones; see tests.tiny_models.

python -m tests.tiny_worker start ...     the command
python -m tests.tiny_worker               a worker process, with its options in the environment
"""

import sys

from worker import cli
from worker.service import process, supervisor
from worker.service.blas import use_fast_blas


def work() -> int:
    """A worker process as it is, with other tables."""
    # Before the import, which loads MLX.
    use_fast_blas(processes=2)
    from tests.tiny_models import tiny_tables

    with tiny_tables():
        return process.main()


if __name__ == "__main__":
    if len(sys.argv) == 1:
        sys.exit(work())
    supervisor.Supervisor.module = "tests.tiny_worker"
    cli.main()
