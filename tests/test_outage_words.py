"""When Redis goes away and comes back, whoever waits for it says so: once each."""

import copy
import logging

import pytest
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError

from shared.jobs.outage import TELL_SECONDS, Outage, TellingRetry

URL = "redis://:secret@studio:6379"


def test_an_outage_is_told_when_it_starts_and_when_it_ends(caplog: pytest.LogCaptureFixture) -> None:
    now = [0.0]
    retry = copy.deepcopy(TellingRetry(Outage(URL, lambda: now[0]), NoBackoff(), 40))
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


def test_one_broken_connection_is_no_outage(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    outage = Outage(URL, lambda: 0.0)
    for _ in range(3):
        outage.failed(RedisConnectionError("closed"))
    outage.answered()
    assert caplog.records == []
    assert TELL_SECONDS > 0
