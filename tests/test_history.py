"""Notes beside a job: bounded, and readable whatever else lies there."""

from redis import Redis

from shared.jobs.history import (
    KEEP_SECONDS,
    MAX_DETAIL,
    MAX_EVENTS,
    Event,
    Progress,
    add_event,
    clear_progress,
    forget_events,
    read_events,
    read_progress,
    set_progress,
)


def event(detail: str = "") -> Event:
    return Event(outcome="failed", host="studio", worker="studio-1", detail=detail)


def test_oldest_first_and_stamped(redis: Redis) -> None:
    for detail in ("one", "two"):
        add_event(redis, "job", event(detail))
    events = read_events(redis, "job")
    assert [each.detail for each in events] == ["one", "two"]
    assert all(each.at.endswith("+00:00") for each in events)
    assert read_events(redis, "other") == []


def test_a_long_detail_keeps_its_end(redis: Redis) -> None:
    add_event(redis, "job", event("x" * 10**6 + "ValueError: why"))
    (only,) = read_events(redis, "job")
    assert len(only.detail) == MAX_DETAIL
    assert only.detail.endswith("ValueError: why")


def test_only_the_last_are_kept_and_not_for_ever(redis: Redis) -> None:
    for number in range(MAX_EVENTS + 30):
        add_event(redis, "job", event(str(number)))
    assert [each.detail for each in read_events(redis, "job")] == [
        str(number) for number in range(30, MAX_EVENTS + 30)
    ]
    assert 0 < redis.ttl("bitfleet:history:job") <= KEEP_SECONDS


def test_forgetting(redis: Redis) -> None:
    for job_id in ("a", "b", "c"):
        add_event(redis, job_id, event())
    forget_events(redis, ["a", "b", "never"])
    forget_events(redis, [])
    assert [len(read_events(redis, job_id)) for job_id in ("a", "b", "c")] == [0, 0, 1]


def test_what_can_not_be_read_is_left_out(redis: Redis) -> None:
    garbage = (b"\xff", b"{}", b"[]", b'{"outcome":"danced","host":"h","worker":"w"}', b'{"outcome":"\xff"}')
    for line in garbage:
        redis.rpush("bitfleet:history:job", line)
        redis.hset("bitfleet:progress:queue", line, line)
    add_event(redis, "job", event("good"))
    set_progress(redis, "queue", "job", Progress(text="step 1", host="h", worker="w"))
    assert [each.detail for each in read_events(redis, "job")] == ["good"]
    assert set(read_progress(redis, "queue")) == {"job"}


def test_progress_is_by_queue_and_ends(redis: Redis) -> None:
    set_progress(redis, "queue", "job", Progress(text="step 1", host="h", worker="w"))
    set_progress(redis, "queue", "job", Progress(text="step 2", host="h", worker="w"))
    assert read_progress(redis, "queue")["job"].text == "step 2"
    assert read_progress(redis, "another") == {}
    clear_progress(redis, "queue", "job")
    assert read_progress(redis, "queue") == {}
