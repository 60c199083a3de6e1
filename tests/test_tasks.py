"""Tasks: what travels, and what is refused."""

import pytest

from shared.errors import TaskRefusedError
from shared.jobs.task_job import (
    function_name,
)
from shared.kinds.registry import decode_task, encode_task
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


def test_functions() -> None:
    assert function_name(image_task()) == "calibrate"
    assert function_name(layer_task()) == "measure"
