"""A real Redis for the tests, and finished sensitivity tasks as a worker would leave them."""

import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import settings
from redis import Redis

from benchmarks.settings import run_settings
from producer.results.merge import FinishedTask
from shared.kinds.kind import Task
from shared.kinds.sensitivity import SensitivityShard, SensitivityTask
from shared.model_card import LayerInfo, ModelCard
from shared.runs import RunSettings, SensitivitySettings
from shared.stores.records import Record
from tests.redis_process import RedisProcess, short_folder
from worker.families.diffusionkit.mmdit_places import place_of

# Programs that tests start inherit an ignored signal, as it is under nohup; what they do on it is tested.
signal.signal(signal.SIGHUP, signal.SIG_DFL)

pytest.register_assert_rewrite("tests.store_contract", "tests.lease_fleet", "tests.job_fleet", "tests.tasks")

# A busy machine is no failure.
# The same examples each time, so that a red run is red again; `make fuzz` draws others, and more of them.
FUZZ = int(os.environ.get("BITFLEET_FUZZ", 0))
settings.register_profile(
    "bitfleet", deadline=None, derandomize=not FUZZ, max_examples=FUZZ or settings.default.max_examples
)
settings.load_profile("bitfleet")

IMAGE = "multimodal_transformer_blocks.{}.image_transformer_block."
TEXT = "multimodal_transformer_blocks.{}.text_transformer_block."
DEAD = TEXT.format(1) + "attn.q_proj"
PARTS = ("attn.q_proj", "attn.k_proj", "attn.v_proj", "attn.o_proj", "mlp.fc1", "mlp.fc2")


def layer_paths(blocks: int) -> list[str]:
    """An SD3-shaped model's layers in the order of the forward pass."""
    paths = [
        "context_embedder",
        "t_embedder.mlp.layers.0",
        "t_embedder.mlp.layers.2",
        "y_embedder.mlp.layers.0",
    ]
    for block in range(blocks):
        for prefix in (IMAGE, TEXT):
            paths += [prefix.format(block) + part for part in (*PARTS, "adaLN_modulation.layers.1")]
    return [*paths, "final_layer.adaLN_modulation.layers.1", "final_layer.linear"]


@dataclass(frozen=True)
class Example:
    """A run over an SD3-shaped model, and what its workers left."""

    num_steps: int = 6
    images: int = 4
    blocks: int = 2
    size: int = 64
    bits: tuple[int, ...] = (2, 4, 8)
    card: ModelCard = field(init=False)
    run: RunSettings = field(init=False)
    sensitivity: SensitivitySettings = field(init=False)

    def __post_init__(self) -> None:
        shape = (self.size, self.size)
        layers = tuple(
            LayerInfo(path=path, shape=shape, place=place_of(path, tie=None))
            for path in layer_paths(self.blocks)
        )
        card = ModelCard(model="tiny-sd3", fingerprint="f" * 64, parameters=12345, layers=layers)
        run = run_settings(num_steps=self.num_steps, prompts_sha256="a" * 64)
        sensitivity = SensitivitySettings(run_id=run.id, sample_set_sha256="b" * 64, group_size=64)
        for name, value in (("card", card), ("run", run), ("sensitivity", sensitivity)):
            object.__setattr__(self, name, value)

    def task(self, layer: str, bits: int) -> SensitivityTask:
        return SensitivityTask(
            run=self.run, sensitivity=self.sensitivity, store_id="store", layer=layer, bits=bits
        )

    def shard(self, task: SensitivityTask) -> SensitivityShard:
        """Errors that fall with bits and depth and differ by image; none for the dead layer."""
        index = [layer.path for layer in self.card.layers].index(task.layer)
        rng = np.random.default_rng([index, task.bits])
        n = self.images * self.num_steps
        image_index = np.repeat(np.arange(self.images), self.num_steps)
        dead = task.layer == DEAD
        scale = 0.0 if dead else rng.uniform(0.05, 1) * 4.0 ** (1 - task.bits) / (1 + index / 10)
        reference = rng.uniform(50, 150, n)
        error = scale * reference * (1 + 0.3 * image_index) * rng.uniform(0.5, 1.5, n)
        return SensitivityShard(
            image_index=image_index,
            step_index=np.tile(np.arange(self.num_steps), self.images),
            squared_error=error,
            squared_reference=reference,
            noise_squared_error=np.full(n, 1e-12),
            cosine=1 - error / reference / 2,
            max_abs=np.sqrt(error) / 3,
            output_size=np.array(1024),
            dead=np.array(dead),
            weight_squared_error=np.array(4.0 ** (1 - task.bits)),
            weight_squared_norm=np.array(2.0),
            bits_per_weight=np.array(task.bits + 0.5),
        )

    def record(self, task: Task, host: str = "studio", number: int = 0) -> Record:
        return Record(
            task=task,
            sha256="0" * 64,
            size=1000,
            fingerprint=self.card.fingerprint,
            versions={"mlx": "0.32.4", "bitfleet": "0.1.0"},
            host=host,
            worker=f"{host}-{number % 2}",
            seconds=0.1 + number / 7,
            finished_at=f"2026-01-02T03:{number // 60 % 60:02d}:{number % 60:02d}Z",
        )

    def finished(self) -> list[FinishedTask]:
        """Every (layer, bits)."""
        tasks = [self.task(layer.path, bits) for layer in self.card.layers for bits in self.bits]
        hosts = ("studio", "air")
        return [
            FinishedTask(task=task, shard=self.shard(task), record=self.record(task, hosts[n % 2], n))
            for n, task in enumerate(tasks)
        ]


@pytest.fixture(scope="session")
def make_example() -> Callable[..., Example]:
    return Example


@pytest.fixture(scope="session")
def _shared_redis() -> Iterator[RedisProcess]:
    with short_folder() as folder, RedisProcess(folder) as server:
        yield server


@pytest.fixture
def redis_url(_shared_redis: RedisProcess) -> str:
    """An empty Redis, over a private Unix socket."""
    with Redis.from_url(_shared_redis.url) as client:
        client.flushall()
        # A test may have changed what the next one takes for granted.
        client.config_set("maxmemory", 0)
        client.config_set("maxmemory-policy", "noeviction")
    return _shared_redis.url


@pytest.fixture
def redis(redis_url: str) -> Iterator[Redis]:
    """A client of an empty Redis."""
    with Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """What failed in this process is tried again at once."""
    monkeypatch.setattr("worker.jobs.verdict.FIRST_WAIT_SECONDS", 0.01)


@pytest.fixture
def own_redis() -> Iterator[RedisProcess]:
    """A Redis of this test's own, with AOF, to be killed and started again."""
    with short_folder() as folder, RedisProcess(folder, append_only=True) as server:
        yield server
