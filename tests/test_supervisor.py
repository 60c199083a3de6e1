"""The supervisor: starts workers again, and tells of a dead one's job how it died."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import worker.service.supervisor
from shared.jobs.history import Event, add_event, read_events
from tests.chaos import ROOT, Chaos
from tests.lease_fleet import QUEUE, Fleet
from tests.tasks import image_task
from worker.jobs.lease import EXIT_TIMEOUT
from worker.jobs.post_mortem import cause_of_death, outcome_of_death, report_death
from worker.service.options import WorkerOptions
from worker.service.process import EXIT_REFUSED, EXIT_TROUBLE
from worker.service.supervisor import LAUNCHER, MAX_TROUBLES, Supervisor

TASK = image_task(0)


@pytest.mark.parametrize(
    ("code", "words"),
    [(-9, "signal SIGKILL"), (-63, "signal -"), (1, "exit code 1"), (EXIT_TIMEOUT, "over its time limit")],
)
def test_cause_of_death(code: int, words: str) -> None:
    assert words.rstrip("-") in cause_of_death(code)


class TestReport:
    @pytest.fixture
    def fleet(self, redis_url: str, tmp_path: Path) -> Iterator[Fleet]:
        """A job that a worker named `dead` runs, as it said itself; its lease holds for long."""
        fleet = Fleet(redis_url, tmp_path)
        fleet.start_by_hand(TASK, "x", until=2**33)
        fleet.redis.hset(f"rq:job:{TASK.id}", "worker_name", "dead")
        fleet.redis.sadd("rq:worker:dead:executions", f"{TASK.id}:x")
        add_event(fleet.redis, TASK.id, Event(outcome="started", host="studio", worker="dead"))
        yield fleet
        fleet.close()

    def test_is_in_the_history_and_returns_the_job(self, fleet: Fleet) -> None:
        report_death(fleet.url, QUEUE, "dead", -signal.SIGSEGV)
        event = read_events(fleet.redis, TASK.id)[-1]
        assert (event.outcome, event.host, event.worker) == ("crashed", "studio", "dead")
        assert event.detail == "signal SIGSEGV"
        assert fleet.queue.in_flight().queued == (TASK.id,)
        assert fleet.queue.in_flight().started == frozenset()
        assert fleet.attempts(TASK) == 1

    def test_is_not_given_for_a_job_that_others_have(self, fleet: Fleet) -> None:
        leases = fleet.queue.started_job_registry.key
        fleet.redis.delete(leases)
        fleet.redis.zadd(leases, {f"{TASK.id}:y": 2**33})
        report_death(fleet.url, QUEUE, "dead", -9)
        assert fleet.outcomes(TASK) == ["started"]
        assert fleet.redis.zrange(leases, 0, -1) == [f"{TASK.id}:y".encode()]
        assert fleet.queue.in_flight().queued == ()

    def test_of_garbage(self, fleet: Fleet) -> None:
        fleet.redis.sadd("rq:worker:dead:executions", b"\xff:\xff", "", "a b:c")
        report_death(fleet.url, QUEUE, "dead", -9)
        assert fleet.queue.in_flight().queued == (TASK.id,)

    def test_without_a_redis(self, tmp_path: Path) -> None:
        report_death(f"unix://{tmp_path}/none", QUEUE, "dead", -9)


class FakeProcess:
    """One that lives, and notes the signals that it gets."""

    def __init__(self) -> None:
        self.signals: list[int] = []

    def poll(self) -> None:
        return None

    def send_signal(self, number: int) -> None:
        self.signals.append(number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def test_two_signals_at_once_reach_a_worker_as_two(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second arrives while the first is handed on. Of one kind, they would be one to a busy process."""
    supervisor = Supervisor(WorkerOptions(redis_url="none"), 1, queue_name=QUEUE)
    process = FakeProcess()
    supervisor._slots[0].process = process  # type: ignore[assignment]

    def interrupted(text: str) -> None:
        if supervisor._signals == 1:
            supervisor._hand_on(signal.SIGINT, None)

    monkeypatch.setattr(worker.service.supervisor.logger, "warning", interrupted)
    supervisor._hand_on(signal.SIGINT, None)
    assert sorted(process.signals) == [signal.SIGINT, signal.SIGTERM]


class Lives:
    """What the processes of one slot come to, one after the other: exit code, and seconds lived."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **options: Any) -> None:
        self.reported: list[int] = []
        monkeypatch.setattr(
            worker.service.supervisor, "report_death", lambda *args: self.reported.append(args[3])
        )
        self.supervisor = Supervisor(WorkerOptions(redis_url="none", **options), 1, queue_name=QUEUE)

    def end(self, code: int, seconds: float) -> bool:
        """Whether it was the last."""
        (slot,) = self.supervisor._slots
        slot.process = SimpleNamespace(poll=lambda: code, stdin=None)  # type: ignore[assignment]
        slot.started = time.monotonic() - seconds
        self.supervisor._look_after(slot)
        return slot.over


class TestWhatEndsASupervisor:
    def test_a_worker_that_never_could_start(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert Lives(monkeypatch).end(EXIT_REFUSED, 1)

    def test_not_one_that_can_not_start_again_where_others_worked(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A library that is being updated, a share that is not mounted."""
        lives = Lives(monkeypatch)
        assert not lives.end(-signal.SIGKILL, 60)
        assert not any(lives.end(EXIT_REFUSED, 1) for _ in range(10))
        assert lives.supervisor._slots[0].backoff == Supervisor.max_backoff

    @pytest.mark.parametrize("options", [{"burst": True}, {"alone": True}])
    def test_one_that_others_do_not_replace(
        self, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
    ) -> None:
        lives = Lives(monkeypatch, **options)
        assert not lives.end(-signal.SIGKILL, 60)
        assert lives.end(EXIT_REFUSED, 60)

    def test_not_redis_out_of_reach(self, monkeypatch: pytest.MonkeyPatch) -> None:
        lives = Lives(monkeypatch)
        assert not any(lives.end(EXIT_TROUBLE, 1) for _ in range(20))

    def test_a_burst_waits_a_little_for_redis(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """It was killed together with a worker, and is being started again."""
        lives = Lives(monkeypatch, burst=True)
        assert not lives.end(-signal.SIGKILL, 3)
        assert not any(lives.end(EXIT_TROUBLE, 1) for _ in range(MAX_TROUBLES))
        assert lives.end(EXIT_TROUBLE, 1)
        assert lives.supervisor._exit_code == EXIT_REFUSED

    def test_a_worker_that_does_not_leave_with_our_parent_is_killed(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It waits for a Redis that ended with that parent."""
        monkeypatch.setattr(worker.service.supervisor, "parent_is_gone", lambda: True)
        monkeypatch.setattr(worker.service.supervisor, "LEAVE_SECONDS", 0.0)
        supervisor = Supervisor(WorkerOptions(redis_url="none"), 1, queue_name=QUEUE, with_parent=True)
        supervisor._slots[0].process = process = FakeProcess()  # type: ignore[assignment]
        supervisor._leave_with_parent()
        assert process.signals == [signal.SIGTERM, signal.SIGINT]
        supervisor._leave_with_parent()
        assert process.signals[2:] == [signal.SIGKILL]

    def test_what_it_killed_itself_is_no_jobs_fault(self, monkeypatch: pytest.MonkeyPatch) -> None:
        lives = Lives(monkeypatch)
        lives.supervisor._signals = 3
        assert lives.end(-signal.SIGKILL, 60)
        assert [outcome_of_death(code) for code in lives.reported] == ["handed back"]


@pytest.mark.parametrize(
    ("code", "outcome"),
    [
        (-signal.SIGKILL, "killed"),
        (-signal.SIGSEGV, "crashed"),
        (-signal.SIGABRT, "crashed"),
        (1, "crashed"),
        (EXIT_TIMEOUT, "timed out"),
        (EXIT_TROUBLE, "handed back"),
        (-signal.SIGTERM, "handed back"),
    ],
)
def test_what_a_death_says_of_the_job(code: int, outcome: str) -> None:
    assert outcome_of_death(code) == outcome


@pytest.mark.slow
class TestProcesses:
    @pytest.fixture
    def chaos(self, redis_url: str, tmp_path: Path) -> Iterator[Chaos]:
        chaos = Chaos(redis_url, tmp_path)
        yield chaos
        chaos.close()

    def test_a_dead_workers_job_is_begun_again_before_its_lease_is_over(self, chaos: Chaos) -> None:
        """The lease is ten minutes here."""
        chaos.enqueue(1, "600")
        supervisor = chaos.start("supervise", "1", lease=600)
        (job_id,) = (task.id for task in chaos.tasks)

        def outcomes() -> list[tuple[str, str]]:
            return [(event.outcome, event.detail) for event in read_events(chaos.redis, job_id)]

        chaos.wait_until(lambda: outcomes() == [("started", "")])
        (key,) = chaos.redis.smembers("rq:workers")
        os.kill(int(chaos.redis.hget(key, "pid")), signal.SIGKILL)
        began = ("started", "")
        chaos.wait_until(lambda: outcomes() == [began, ("killed", "signal SIGKILL"), began])
        supervisor.send_signal(signal.SIGTERM)
        supervisor.send_signal(signal.SIGINT)
        assert supervisor.wait(20) == 0
        assert chaos.queue.in_flight().queued == (job_id,)

    def test_no_redis_is_no_reason_to_leave_for_good(self, chaos: Chaos) -> None:
        chaos.enqueue(1, "0")
        supervisor = chaos.start("supervise", "1", url="unix:///nonexistent/redis.sock")
        chaos.wait_until(lambda: chaos.logs().count("out of reach") >= 2)
        assert supervisor.poll() is None
        supervisor.send_signal(signal.SIGTERM)
        assert supervisor.wait(20) == 0

    def test_a_worker_that_can_not_be_imported_is_not_started_again(self, tmp_path: Path) -> None:
        (tmp_path / "broken_worker.py").write_text("import no_such_library\n")
        code = (
            "from worker.service.supervisor import Supervisor; "
            "from worker.service.options import WorkerOptions; "
            "Supervisor.module = 'broken_worker'; "
            "options = WorkerOptions(redis_url='unix:///nonexistent'); "
            "raise SystemExit(Supervisor(options, 1, queue_name='x').run())"
        )
        ended = self._python(tmp_path, "-c", code, PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}")
        assert ended.returncode == 2
        assert ended.stderr.count("\n") == 1
        assert "No module named 'no_such_library'" in ended.stderr

    def test_a_folder_with_files_of_the_same_names(self, redis_url: str, tmp_path: Path) -> None:
        """`worker start` there runs ours: a user may well have a worker.py."""
        (tmp_path / "shared").mkdir()
        for name in ("worker.py", "shared/__init__.py", "rq.py", "logging.py"):
            (tmp_path / name).write_text("raise SystemExit('taken for bitfleet')\n")
        command = ("-P", str(LAUNCHER), "worker.cli", "start", "--burst", "--redis-url", redis_url)
        ended = self._python(tmp_path, *command)
        assert ended.returncode == 0, ended.stderr
        assert "ready: queue" in ended.stderr
        assert "taken for bitfleet" not in ended.stderr

    def test_another_shared_on_the_path_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "shared").mkdir()
        (tmp_path / "shared/__init__.py").touch()
        path = f"{tmp_path}{os.pathsep}{ROOT}"
        ended = self._python(tmp_path, "-P", "-m", "worker.cli", "start", PYTHONPATH=path)
        assert ended.returncode == 2
        assert ended.stderr.count("\n") == 1
        assert f"another one ({tmp_path}/shared/__init__.py)" in ended.stderr

    @staticmethod
    def _python(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=folder,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
