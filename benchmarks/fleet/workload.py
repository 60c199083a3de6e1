"""The tasks of a run like a real one, and what each costs."""

import math
from dataclasses import dataclass

from benchmarks.settings import run_settings
from shared.choices import DEFAULT_MODEL
from shared.costs import TaskSize, candidate_passes, cost_of
from shared.kinds.calibration import CalibrationTask
from shared.kinds.kind import Task
from shared.kinds.sensitivity import SensitivityTask
from shared.models import model_spec
from shared.runs import SensitivitySettings
from shared.stores.relay_store import RELAY_ID

BITS = (2, 3, 4, 6, 8)
SAMPLES = 80
RUN = run_settings(DEFAULT_MODEL, image_size=512)
SPEC = model_spec(RUN.model)
LAYERS = SPEC.transformer.linear_layers
PASS_FLOPS = cost_of("calibration", SPEC, TaskSize.of(RUN, SPEC)).forward_flops
PER_REQUEST = len(LAYERS) * len(BITS)
"""Tasks of one exact measurement: 341 layers at 5 bit widths."""


@dataclass(frozen=True, slots=True)
class Load:
    """What one task asks for."""

    flops: float
    shard_bytes: int


@dataclass(frozen=True, slots=True)
class Workload:
    """Parts, as a producer has them: images, and exact measurements."""

    parts: tuple[tuple[Task, ...], ...]
    loads: dict[str, Load]
    """By task id."""

    @property
    def flops(self) -> float:
        """Of all tasks."""
        return sum(load.flops for load in self.loads.values())


def make_workload(tasks: int, images: int) -> Workload:
    """Return so many images of 50 steps, and as many exact measurements as it takes, of SD3 medium at 512 px.

    Each measurement is in the order of the forward pass, on 80 samples. One with fewer tasks than layers and
    bit widths has layers from all over the model.
    """
    parts: list[tuple[Task, ...]] = [_images(images)]
    loads = dict.fromkeys([task.id for task in parts[0]], _image_load())
    left = tasks - images
    requests = math.ceil(left / PER_REQUEST)
    for request in range(requests):
        count = left // requests + (request < left % requests)
        measured = _measurement(request, count)
        parts.append(tuple(measured))
        loads |= {task.id: load for task, load in measured.items()}
    return Workload(parts=tuple(part for part in parts if part), loads=loads)


def _images(count: int) -> tuple[Task, ...]:
    return tuple(
        CalibrationTask(run=RUN, store_id=RELAY_ID, image_index=index, prompt=f"prompt {index}", seed=index)
        for index in range(count)
    )


def _image_load() -> Load:
    cost = cost_of("calibration", SPEC, TaskSize.of(RUN, SPEC))
    return Load(cost.forward_passes * cost.forward_flops, cost.shard_bytes)


def _measurement(request: int, count: int) -> dict[Task, Load]:
    settings = SensitivitySettings(run_id=RUN.id, sample_set_sha256=f"{request:064x}", group_size=64)
    cost = cost_of("sensitivity", SPEC, TaskSize.of(RUN, SPEC, samples=SAMPLES))
    tasks: dict[Task, Load] = {}
    for place in range(count):
        layer, bits = divmod(place * PER_REQUEST // count, len(BITS))
        passes = SAMPLES * candidate_passes(LAYERS[layer], SPEC.transformer.blocks)
        task = SensitivityTask(
            run=RUN, sensitivity=settings, store_id=RELAY_ID, layer=f"layer.{layer}", bits=BITS[bits]
        )
        tasks[task] = Load(max(passes, 1.0) * cost.forward_flops, cost.shard_bytes)
    return tasks
