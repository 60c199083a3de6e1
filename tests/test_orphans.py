"""No process outlives those it works for, however early they end; and nobody waits for Redis to stop."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis
from redis.exceptions import RedisError

from producer.interrupts import Interrupts
from producer.jobs.redis_server import RedisServer
from tests.chaos import Chaos
from tests.fleet import Fleet
from tests.redis_process import RedisProcess
from tests.tasks import wait_until
from worker.service.parent import leave_with_parent, parent_is_gone

pytestmark = pytest.mark.slow


def is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # A zombie is a process that nobody asked about yet.
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


def children_of(pid: int) -> list[int]:
    found = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False)
    return [int(line) for line in found.stdout.split()]


class TestProducerRun:
    @pytest.fixture
    def fleet(self, tmp_path: Path) -> Iterator[Fleet]:
        fleet = Fleet(tmp_path / "work", None, tmp_path / "cache")
        yield fleet
        fleet.close()

    @pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGKILL])
    def test_no_redis_and_no_worker_is_left(self, fleet: Fleet, number: signal.Signals) -> None:
        """SIGHUP is a closed terminal. A killed one needs Linux, or a Mac's next run.

        A worker is in the midst of a job then, and the Redis to hand it back to is gone.
        """
        if number == signal.SIGKILL and sys.platform != "linux":
            pytest.skip("Linux only")
        process = fleet.start(
            "producer", "run", "--model", "tiny-sd3", "--num-images", "1", "--num-steps", "1000",
            "--prompt-csv", "prompts.csv", "--yes",
        )  # fmt: skip
        url = RedisServer(fleet.calib / ".bitfleet" / "redis").url

        def a_job_is_under_way() -> bool:
            try:
                with Redis.from_url(url) as client:
                    return any(client.hget(key, "state") == b"busy" for key in client.smembers("rq:workers"))
            except (RedisError, OSError):
                return False

        wait_until(a_job_is_under_way, 60)
        started = children_of(process.pid)
        started += [worker for supervisor in started for worker in children_of(supervisor)]
        assert len(started) == 3
        process.send_signal(number)
        process.wait(30)
        assert process.returncode == (130 if number == signal.SIGHUP else -9)
        # Two seconds, and what they take to end on a busy machine.
        wait_until(lambda: not any(map(is_there, started)), 10)


def test_a_hangup_that_is_ignored_stays_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interrupts():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.fixture
def chaos(own_redis: RedisProcess, tmp_path: Path) -> Iterator[Chaos]:
    chaos = Chaos(own_redis.url, tmp_path)
    yield chaos
    chaos.close()


def test_a_supervisor_that_is_killed_at_once_leaves_no_worker(chaos: Chaos) -> None:
    """Its worker has not even begun to look whether it is there."""
    supervisor = chaos.start("supervise", "1")
    wait_until(lambda: children_of(supervisor.pid), 30)
    (worker,) = children_of(supervisor.pid)
    supervisor.kill()
    supervisor.wait()
    wait_until(lambda: not is_there(worker), 30)


def test_an_idle_worker_stops_without_redis(chaos: Chaos, own_redis: RedisProcess) -> None:
    """At most two seconds are promised. Until Redis is given up it would be more than a minute."""
    worker = chaos.start()
    chaos.wait_until(lambda: "ready" in chaos.logs())
    chaos.wait_until(lambda: chaos.redis.smembers("rq:workers"))
    own_redis.kill()
    chaos.wait_until(lambda: worker.poll() is None)
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(20) == 0, chaos.logs()
    assert "Traceback" not in chaos.logs()


def test_the_end_of_a_pipe_is_the_end_of_its_holder(monkeypatch: pytest.MonkeyPatch) -> None:
    read, write = os.pipe()
    monkeypatch.setattr("worker.service.parent.STDIN", read)
    assert not parent_is_gone()
    got: list[tuple[int, int]] = []
    monkeypatch.setattr("worker.service.parent.os.kill", lambda *arguments: got.append(arguments))
    leave_with_parent(kill_after=0.0)
    os.close(write)
    assert parent_is_gone()
    wait_until(lambda: len(got) == 3)
    assert got == [(os.getpid(), number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGKILL)]
    os.close(read)
