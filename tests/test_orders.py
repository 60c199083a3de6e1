"""Pause, resume and drain: what workers do about them, in this process and in real ones."""

import re
from pathlib import Path

import pytest
from click.testing import CliRunner
from redis import Redis
from rq.exceptions import DequeueTimeout

from producer.cli import main
from producer.folder.run_file import RunFile
from shared.jobs.connection import connect
from shared.jobs.orders import orders_key
from shared.jobs.task_queue import queue_name
from shared.jobs.workers import Place, live_workers
from shared.stores.relay_store import RelayStore
from tests.chaos import Chaos
from tests.folders import Folder
from tests.tasks import SETTINGS, image_task, wait_until
from worker.jobs import choice
from worker.jobs.choice import DrainedError, choosing_queue
from worker.service.machine import host_name

QUEUE = queue_name("relay")
IDS = [image_task(index).id for index in range(2)]


@pytest.fixture
def folder(tmp_path: Path, redis: Redis, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> Folder:
    """Two images that wait."""
    monkeypatch.setattr(choice, "POLL_SECONDS", 0.05)
    folder = Folder(tmp_path / "calib", redis, redis_url, 2)
    folder.call("collect")
    return folder


def order(redis_url: str, *arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(main, [*arguments, "--redis-url", redis_url])
    assert result.exit_code == code, result.output
    return str(result.output)


def found(redis: Redis, host: str, timeout: int | None = None) -> str | None:
    answer = choosing_queue(Place(host, "a-start"), list).lmove(redis, f"rq:queue:{QUEUE}", timeout)
    return answer and answer[1].decode()


def register(redis: Redis, host: str) -> None:
    """A worker of that machine, as it stands in Redis."""
    key = f"rq:worker:{host}-1"
    fields = {"bitfleet_host": host, "bitfleet_start": "x", "last_heartbeat": "now", "state": "busy"}
    redis.hset(key, mapping=fields)
    redis.sadd(f"rq:workers:{QUEUE}", key)


def test_nobody_takes_a_job_of_a_paused_fleet(folder: Folder, redis: Redis, redis_url: str) -> None:
    register(redis, "air")
    text = order(redis_url, "pause")
    assert "the fleet is paused\n1 worker will finish the present job first: air-1" in text
    for timeout in (None, 1):
        with pytest.raises(DequeueTimeout):
            found(redis, "air", timeout)
    assert "paused already" in order(redis_url, "pause")
    assert re.search(r"the fleet is paused, by \S+ at 20.*`producer resume`", folder.call("status").output)
    assert "goes on" in order(redis_url, "resume")
    assert found(redis, "air") == IDS[0]
    assert "was not paused" in order(redis_url, "resume")


def test_a_burst_does_not_wait_for_a_pause_with_nothing_to_do(redis: Redis, redis_url: str) -> None:
    order(redis_url, "pause")
    assert found(redis, "air") is None


def test_a_drained_machine_takes_none_and_others_do(folder: Folder, redis: Redis, redis_url: str) -> None:
    register(redis, "air")
    assert "air is drained: 1 worker there will leave after the present job" in order(
        redis_url, "drain", "air"
    )
    for timeout in (None, 1):
        with pytest.raises(DrainedError):
            found(redis, "air", timeout)
    assert found(redis, "studio") == found(redis, "ai") == IDS[0]
    assert "air is drained already" in order(redis_url, "drain", "air")
    assert "`producer drain --undo air` lets it work again" in folder.call("status").output
    assert "may work again" in order(redis_url, "drain", "--undo", "air")
    assert found(redis, "air") == IDS[0]


def test_nonsense_is_one_line(redis: Redis, redis_url: str) -> None:
    assert "no worker on 'air' is connected; none is connected" in order(redis_url, "drain", "air", code=2)
    register(redis, "mini")
    text = order(redis_url, "drain", "\x1b[2Jair", code=2)
    assert "no worker on '\\\\u001b[2Jair' is connected; connected are mini" in text
    assert len(text.splitlines()) == 1
    assert "'air' is not drained; drained are: none" in order(redis_url, "drain", "--undo", "air", code=2)


def test_an_order_that_can_not_be_read_holds_and_one_of_a_wrong_type_is_reset(
    folder: Folder, redis: Redis, redis_url: str
) -> None:
    redis.hset(orders_key(QUEUE), "pause", b"\xff")
    assert "paused, by an unknown machine" in folder.call("status").output
    redis.delete(orders_key(QUEUE))
    redis.set(orders_key(QUEUE), "x")
    with connect(redis_url) as client:
        assert found(client, "air") == IDS[0]


@pytest.mark.slow
def test_real_workers_are_paused_cancelled_and_drained(redis_url: str, tmp_path: Path) -> None:
    """Two that compute for a minute; what they are told takes seconds."""
    chaos = Chaos(redis_url, tmp_path)
    folder = Folder(tmp_path / "calib", chaos.redis, redis_url, 0)
    prompts = ("60", "60", "1", "1", "0.1", "0.1")
    folder.folder.write_run(RunFile(settings=SETTINGS, prompts=prompts, store_id="relay", store=None))
    folder.call("collect")
    ids = [image_task(index).id for index in range(6)]
    store = RelayStore(chaos.redis)

    def states() -> list[str]:
        return [worker.state for worker in live_workers(chaos.queue)]

    try:
        # No lease is to end here, however busy the machine is.
        supervisor = chaos.start("supervise", "2", lease=60)
        wait_until(lambda: chaos.queue.in_flight().started == set(ids[:2]), 60)
        assert "2 workers will finish the present job first" in order(redis_url, "pause")
        assert "2 tasks cancelled: 0 were queued, 2 running" in folder.call("cancel", "image [01]").output
        wait_until(lambda: states() == ["idle", "idle"])
        assert chaos.queue.in_flight().ready == tuple(ids[2:])
        order(redis_url, "resume")
        wait_until(lambda: chaos.queue.in_flight().started == set(ids[2:4]))
        order(redis_url, "drain", host_name())
        assert supervisor.wait(30) == 0
        # Those that ran were finished first; the rest waits for other machines.
        assert store.record_ids(SETTINGS.id) == set(ids[2:4])
        assert chaos.queue.in_flight().queued == tuple(ids[4:])
        assert chaos.start("supervise", "1").wait(30) == 0
        assert chaos.logs().count("this machine was drained") == 3
        assert chaos.logs().count("the lease was lost") == 2
        assert chaos.queue.in_flight().queued == tuple(ids[4:])
    finally:
        chaos.close()
