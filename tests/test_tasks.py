"""Tasks: what travels, and what is refused."""

import pytest

from shared.errors import TaskRefusedError, UnknownKindError
from shared.kinds.registry import KINDS, decode_task, encode_task, kind_of
from tests.tasks import image_task, layer_task


def test_round_trip() -> None:
    for task in (image_task(3, prompt='"ü\n\x00'), layer_task()):
        assert decode_task(encode_task(task)) == task
        assert decode_task(encode_task(task)).id == task.id


def test_every_difference_that_counts_changes_the_id() -> None:
    ids = [layer_task(bits=bits).id for bits in (2, 3)] + [layer_task("a.b").id, layer_task("a.c").id]
    ids += [image_task(0).id, image_task(1).id]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("name", ["store_id", "layer", "run_id", "prompts_sha256", "sample_set_sha256"])
def test_names_take_no_newline(name: str) -> None:
    text = encode_task(layer_task())
    start = text.index(f'"{name}":"') + len(name) + 4
    end = text.index('"', start)
    with pytest.raises(TaskRefusedError, match=name):
        decode_task(text[:end] + "\\n" + text[end:])


def test_a_task_of_another_revision_is_told_from_a_damaged_one() -> None:
    with pytest.raises(UnknownKindError, match="'rounding'"):
        decode_task(encode_task(image_task()).replace('"calibration"', '"rounding"'))
    for damaged in ("", "{}", "[]", '{"type":3}', '{"type":"calibration"}'):
        with pytest.raises(TaskRefusedError):
            decode_task(damaged)


def test_a_kind_is_named_as_its_tasks_are() -> None:
    for name, kind in KINDS.items():
        assert kind.name == name == kind.task.__struct_config__.tag
    assert kind_of(image_task()).name == "calibration"
    assert kind_of(layer_task()).name == "sensitivity"
