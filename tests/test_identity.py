"""Ids of runs: what they were on the first release, they are for ever."""

from typing import ClassVar

import msgspec
from msgspec import Struct

from shared.identity import settings_id
from shared.runs import RunSettings, SensitivitySettings

RUN = RunSettings(
    model="demo",
    num_steps=4,
    cfg_weight=3.0,
    image_size=64,
    seed=0,
    shift=3.0,
    use_t5=False,
    precision="float32",
    prompts_sha256="0" * 64,
)


def test_ids_of_the_first_release() -> None:
    assert RUN.id == "f079046d2908"
    settings = SensitivitySettings(run_id=RUN.id, sample_set_sha256="1" * 64, group_size=64)
    assert settings.id == "cc4dcbef380c"
    # Older folders measured in the model's own precision.
    assert settings.compute == "model"
    assert msgspec.structs.replace(settings, compute="float32").id != settings.id


class First(Struct, frozen=True, kw_only=True):
    steps: int
    checkpoint: str | None = None


class Second(Struct, frozen=True, kw_only=True):
    steps: int
    checkpoint: str | None = None
    reference: str = "old"

    added: ClassVar[frozenset[str]] = frozenset({"reference"})


def test_an_added_field_changes_the_id_only_when_it_says_something_new() -> None:
    before = settings_id(First(steps=3), frozenset())
    assert settings_id(Second(steps=3), Second.added) == before
    assert settings_id(Second(steps=3, reference="new"), Second.added) != before
    assert settings_id(msgspec.convert({"steps": 3}, Second), Second.added) == before
