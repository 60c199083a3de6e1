"""What a store holds, counted."""

import re
from dataclasses import dataclass, field

NAMESPACE = re.compile(r"[A-Za-z0-9_-]{1,80}")
"""What a namespace looks like: see `shared.runs.Identifier`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """What a store holds of one namespace."""

    records: int
    size: int
    """Bytes of its shards (and records, in a folder)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What a store holds."""

    namespaces: dict[str, Held] = field(default_factory=dict)
    blobs: dict[str, int] = field(default_factory=dict)
    """Bytes of each blob, by digest."""

    @property
    def size(self) -> int:
        """Bytes of all together."""
        return sum(held.size for held in self.namespaces.values()) + sum(self.blobs.values())
