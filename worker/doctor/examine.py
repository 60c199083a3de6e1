"""The whole examination."""

import os
from collections.abc import Iterator
from pathlib import Path

from shared.doctor.check import Check, CheckFunction, run_checks
from shared.doctor.surroundings import check_disk, check_redis
from worker.doctor.access import check_access
from worker.doctor.first_mac import check_demo, check_session
from worker.doctor.system import check_mlx_version, check_python, check_system


def examine(
    *, full: bool, redis_url: str | None, store: str | None, model: str, first_mac: bool = False
) -> Iterator[Check]:
    """Yield one check after the other. The first ones that fail explain those that come after.

    Args:
        full: whether to use transformers as wide as published ones.
        redis_url: a Redis to check; None: none.
        store: a store to check; None: the relay in that Redis.
        model: whose files to look for.
        first_mac: whether to tell the kind of session and run the demo, too.
    """
    functions: list[tuple[str, CheckFunction]] = [
        ("Python", check_python),
        ("System", check_system),
        ("MLX", check_mlx_version),
    ]
    yield from run_checks(functions)
    yield from run_checks([("MLX", lambda: _numbers(full=full)), ("Memory", lambda: _memory(model))])
    yield from run_checks(
        [
            ("Redis", lambda: check_redis(redis_url, store)),
            ("Disk", lambda: check_disk(Path.home())),
            ("Model files", lambda: check_access(model, _downloads())),
        ]
    )
    if first_mac:
        yield from run_checks([("Session", check_session), ("Demo", check_demo)])


def _numbers(*, full: bool) -> Iterator[Check]:
    # Imports MLX, which the checks before explain if it fails.
    os.environ.setdefault("MLX_ENABLE_TF32", "0")
    from worker.service.blas import use_fast_blas
    from worker.service.compile_cache import use_own_compile_cache

    use_own_compile_cache()
    use_fast_blas(1)
    from worker.doctor.numerics import numeric_checks

    yield from run_checks(numeric_checks(full=full))


def _memory(model: str) -> Iterator[Check]:
    # Imports MLX.
    from worker.doctor.memory import check_memory

    yield from check_memory(model)


def _downloads() -> Path:
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE)
