"""What follows from a job's history: how often it is tried, after how long, and where."""

from collections.abc import Iterable

import pytest

from shared.jobs.history import Event, Outcome
from shared.jobs.workers import Place
from worker.jobs.verdict import LONGEST_WAIT_SECONDS, Verdict, judge

ALONE = {Place("studio", "")}
TWO = {Place("studio", ""), Place("air", "")}


def history(*endings: tuple[Outcome, str]) -> list[Event]:
    return [Event(outcome=outcome, host=host, worker="w") for outcome, host in endings]


def hosts(*names: str) -> set[Place]:
    return {Place(name, "") for name in names}


def tries(outcome: Outcome, on: Iterable[str], able: set[Place]) -> int:
    """How often a job is tried that always ends so, on one host after the other."""
    events: list[Event] = []
    for host in on:
        events += history(("started", host), (outcome, host))
        if judge(events, able).give_up:
            break
    return sum(event.outcome == outcome for event in events)


@pytest.mark.parametrize(
    ("outcome", "alone", "on_two", "on_one_of_two"),
    [
        ("failed", 4, 4, 8),
        ("crashed", 4, 4, 8),
        ("timed out", 2, 2, 4),
        ("killed", 8, 8, 16),
        ("silent", 20, 20, 20),
        ("handed back", 50, 50, 50),
    ],
)
def test_how_often_a_job_is_tried(outcome: Outcome, alone: int, on_two: int, on_one_of_two: int) -> None:
    assert tries(outcome, ["studio"] * 50, ALONE) == alone
    assert tries(outcome, ["studio", "air"] * 25, TWO) == on_two
    assert tries(outcome, ["studio"] * 50, TWO) == on_one_of_two


def test_what_one_machine_does_to_a_job_is_not_its_fault_until_a_second_one_failed_it() -> None:
    events = history(*[("failed", "studio")] * 7)
    assert not judge(events, TWO).give_up
    assert judge([*events, *history(("failed", "air"))], TWO).give_up
    # There is nobody else: the other one is gone, or can't.
    assert judge(events, ALONE).give_up


def test_endings_of_all_kinds_are_added() -> None:
    events = history(
        ("killed", "a"), ("silent", "a"), ("crashed", "a"), ("handed back", "a"), ("failed", "a")
    )
    assert not judge([*events, *history(("killed", "a"))], hosts("a")).give_up
    assert judge([*events, *history(("failed", "a"), ("killed", "a"))], hosts("a")).give_up


def test_each_try_waits_longer_than_the_last() -> None:
    waits = [
        judge(history(*[("failed", "a")] * count), hosts("a", "b")).wait_seconds for count in range(1, 8)
    ]
    assert waits == [2, 6, 18, 54, 162, LONGEST_WAIT_SECONDS, LONGEST_WAIT_SECONDS]


@pytest.mark.parametrize("outcome", ["silent", "killed"])
def test_the_first_machine_that_is_lost_costs_no_time(outcome: Outcome) -> None:
    waits = [judge(history(*[(outcome, "a")] * count), hosts("a")).wait_seconds for count in range(1, 4)]
    assert waits == [0, 2, 6]


def test_another_try_is_left_to_hosts_that_the_job_did_not_fail_on() -> None:
    assert judge(history(("failed", "a")), hosts("a", "b")).avoid == {"a"}
    assert judge(history(("silent", "a"), ("killed", "b")), hosts("a", "b", "c")).avoid == {"a", "b"}
    # Where there is no other one, any will do.
    assert judge(history(("failed", "a")), hosts("a")) == Verdict(wait_seconds=2.0)
    assert judge(history(("failed", "a"), ("failed", "b")), hosts("a", "b")).avoid == frozenset()


class TestTwoStartsOnOneMachine:
    """Each `worker start` has its own folders and files: one may fail where the other does not."""

    FIRST, SECOND, ELSEWHERE = Place("studio", "one"), Place("studio", "two"), Place("air", "three")

    def failures(self, *places: Place) -> list[Event]:
        return [Event(outcome="failed", host=host, start=start, worker="w") for host, start in places]

    def test_the_other_one_is_preferred(self) -> None:
        verdict = judge(self.failures(self.FIRST), {self.FIRST, self.SECOND})
        assert verdict.avoid == {"one"}
        assert not judge(self.failures(*[self.FIRST] * 4), {self.FIRST, self.SECOND}).give_up
        assert judge(self.failures(*[self.FIRST] * 3, self.SECOND), {self.FIRST, self.SECOND}).give_up

    def test_another_machine_even_more(self) -> None:
        able = {self.FIRST, self.SECOND, self.ELSEWHERE}
        failures = self.failures(*[self.FIRST] * 3, self.SECOND)
        assert judge(failures, able) == Verdict(wait_seconds=54.0, avoid=frozenset({"studio"}))
        assert judge([*failures, *self.failures(self.ELSEWHERE)], able).give_up
