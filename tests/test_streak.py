"""Several different tasks that fail in a row on one machine."""

from shared.jobs.asides import ASIDE_SECONDS
from tests.tasks import image_task, layer_task
from worker.jobs.streak import FIRST_PAUSE_SECONDS, FailureStreaks

IDS = [image_task(index).id for index in range(5)]


def test_the_third_different_task_in_a_row_begins_a_pause() -> None:
    streaks = FailureStreaks()
    assert [streaks.failed(job_id) for job_id in (IDS[0], IDS[0], IDS[1], layer_task().id)] == [None] * 4
    assert streaks.failed(IDS[2]) == FIRST_PAUSE_SECONDS


def test_one_that_is_done_ends_it() -> None:
    streaks = FailureStreaks()
    streaks.failed(IDS[0])
    streaks.failed(IDS[1])
    streaks.done(IDS[2])
    assert streaks.failed(IDS[3]) is None


def test_each_pause_is_longer_than_the_last_up_to_a_limit() -> None:
    streaks = FailureStreaks()
    pauses = [pause for _ in range(4) for job_id in IDS[:3] if (pause := streaks.failed(job_id))]
    assert pauses[:4] == [60, 120, 240, 480]
    assert pauses[-1] == ASIDE_SECONDS
