"""What a worker process takes from its machine: refused before it is taken, and given back when idle."""

from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten
from redis import Redis

import worker.service.canary
import worker.service.runtime
from shared.costs import TaskSize, cost_of
from shared.errors import MachineTooSmallError
from shared.models import model_spec
from shared.stores.relay_store import RelayStore
from tests.garbage import collect_garbage
from tests.tasks import SETTINGS, image_task
from worker.engine.limits import CACHE_SHARE, default_memory_limit
from worker.families.registry import FAMILIES
from worker.jobs.job_context import JobContext
from worker.service.runtime import Runtime

pytestmark = pytest.mark.slow

CONTEXT = JobContext(confirm=lambda: None)


@pytest.fixture
def runtime(redis: Redis, tmp_path: Path) -> Any:
    def new(**options: Any) -> Runtime:
        return Runtime(store=RelayStore(redis), host="air", worker="air-1", cache_dir=tmp_path, **options)

    limits = mx.set_memory_limit(2**40), mx.set_cache_limit(2**40)
    yield new
    mx.set_memory_limit(limits[0])
    mx.set_cache_limit(limits[1])


def test_what_does_not_fit_is_refused_before_its_weights_are_read(runtime: Any) -> None:
    collect_garbage()
    before = mx.get_active_memory()
    with pytest.raises(MachineTooSmallError) as caught:
        runtime(memory_limit=1_000_000).run(image_task(), CONTEXT)
    assert str(caught.value).startswith("tiny-sd3 for images needs ")
    assert " MB of memory, this machine offers 1 MB; --memory-limit (or BITFLEET" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert mx.get_active_memory() - before < 100_000


def test_it_tells_once_for_a_model_how_fast_a_pass_is_here(
    runtime: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, told = runtime(), list[float]()
    context = JobContext(confirm=lambda: None, tell_speed=told.append)
    for index in range(2):
        assert one.run(image_task(index), context)["outcome"] == "stored"
    flops = cost_of("calibration", model_spec("tiny-sd3"), TaskSize.of(SETTINGS, model_spec("tiny-sd3")))
    (speed,) = told
    # The pass takes between a thousandth of a millisecond and ten seconds.
    assert flops.forward_flops / 10 < speed < flops.forward_flops * 1e6
    monkeypatch.setattr(worker.service.canary, "time_pass", lambda *_: 2.0)
    assert runtime().run(image_task(2), context)["outcome"] == "stored"
    assert told[1] == flops.forward_flops / 2


def test_an_idle_worker_gives_the_model_back_and_takes_it_again(
    runtime: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = runtime()
    assert one.run(image_task(0), CONTEXT)["outcome"] == "stored"
    weights = sum(value.nbytes for _, value in tree_flatten(one._model[1].transformer.parameters()))
    one.rest()
    assert one._model is not None, "it was used just now"
    held = mx.get_active_memory()
    monkeypatch.setattr(worker.service.runtime, "IDLE_SECONDS", 0.0)
    one.rest()
    assert one._model is None
    assert held - mx.get_active_memory() >= weights
    assert mx.get_cache_memory() == 0
    one.rest()
    assert one.run(image_task(1), CONTEXT)["outcome"] == "stored"


def test_mlx_is_told_what_the_machine_offers_each_time(runtime: Any) -> None:
    one = runtime(workers_here=2)
    one._model_of(image_task())
    share = mx.set_memory_limit(2**40)
    assert 0.3 * default_memory_limit() < share < 0.7 * default_memory_limit()
    one._model_of(image_task())
    assert mx.set_memory_limit(2**40) == share
    assert mx.set_cache_limit(2**40) == share // CACHE_SHARE


def test_where_it_was_computed_stands_in_the_record(runtime: Any, redis: Redis) -> None:
    runtime().run(image_task(2), CONTEXT)
    versions = RelayStore(redis).record(image_task(2).namespace, image_task(2).id).versions
    assert versions["architecture"] == mx.device_info()["architecture"]
    assert versions["device"] == mx.device_info()["device_name"]
    assert versions["os"]
    assert versions["tf32"] in ("off", "allowed")


def test_a_family_of_another_library_is_served_like_any_other(
    runtime: Any, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(FAMILIES, "sd3", "tests.toy_families")
    one = runtime(connection=redis)
    assert one.run(image_task(), CONTEXT)["outcome"] == "stored"
    assert redis.exists(f"bitfleet:canary:{SETTINGS.id}")
    assert RelayStore(redis).record(SETTINGS.id, image_task().id).fingerprint == "0" * 64
