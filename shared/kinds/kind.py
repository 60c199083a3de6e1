"""What all kinds of tasks have in common."""

from dataclasses import dataclass
from typing import Annotated

from msgspec import Meta, Struct

from shared.choices import BITS
from shared.packed_arrays import PackedArrays
from shared.runs import Identifier, RunSettings

LAYER_PATTERN = r"^[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z0-9_]+)*\Z"

Layer = Annotated[str, Meta(pattern=LAYER_PATTERN, max_length=200)]
"""Dotted MLX path."""
Bits = Annotated[int, Meta(ge=min(BITS), le=max(BITS))]


class Task(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What to compute, as plain data. Decoding a task checks every field."""

    run: RunSettings
    store_id: Identifier

    @property
    def id(self) -> str:
        """The name of the task's job, shard and record."""
        raise NotImplementedError

    @property
    def namespace(self) -> str:
        """The name under which a store keeps the task's shard and record."""
        raise NotImplementedError

    @property
    def label(self) -> str:
        """A short description for messages."""
        raise NotImplementedError

    @property
    def blobs(self) -> tuple[str, ...]:
        """Digests of the blobs that the task needs; one that lists others stands for them."""
        return ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One kind of task: the class of its tasks, and of the shards that they produce."""

    name: str
    """Name of its modules, and of the function that a job calls."""
    task: type[Task]
    shard: type[PackedArrays]
    prefix: str = ""
    """What the ids of its tasks begin with."""
    tasks: str = "tasks"
    """What messages call its tasks: "images"."""
