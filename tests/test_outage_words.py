"""When Redis goes away and comes back, whoever waits for it says so: once each."""

import copy

import pytest
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError

from shared.jobs.outage import TellingRetry, outage_of
from shared.outage import TELL_SECONDS, Outage

URL = "redis://:secret@studio:6379"


def test_an_outage_is_told_when_it_starts_and_when_it_ends(caplog: pytest.LogCaptureFixture) -> None:
    now = [0.0]
    outage = outage_of(URL)
    outage._clock = lambda: now[0]
    retry = copy.deepcopy(TellingRetry(outage, URL, NoBackoff(), 40))
    errors = [RedisConnectionError("secret\x1b[2J")] * 30

    def ask() -> str:
        now[0] += 0.5
        if errors:
            raise errors.pop()
        return "answer"

    assert retry.call_with_retry(ask, lambda error: None) == "answer"
    assert retry.call_with_retry(ask, lambda error: None) == "answer"
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2
    assert said[0].startswith("Redis at redis://***@studio:6379 does not answer (***\\u001b[2J)")
    assert said[1].endswith("answers again, after 15 s")
    assert not [line for line in said if "secret" in line]


def test_one_broken_connection_is_no_outage() -> None:
    said: list[str] = []
    outage = Outage("Redis", said.append, lambda: 0.0)
    for _ in range(3):
        outage.failed("closed")
    outage.answered()
    assert said == []
    assert TELL_SECONDS > 0
