"""`producer status`: what it counts, how long it says that things take, and in which forms it says so."""

import io
import json
import logging
import socket
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from redis import Redis
from rich.console import Console

from producer.console import Bars
from producer.jobs.redis_server import RedisServer
from producer.ledger import Ledger
from producer.progress import command
from producer.progress.pace import seconds_by_host, seconds_left, tasks_per_hour, with_timed_hosts
from producer.progress.status import FORMAT, PartStatus, RunStatus, WorkerStatus
from producer.progress.tables import show
from producer.progress.words import duration, rate, short
from shared.costs import TaskSize, cost_of
from shared.errors import InputError, RedisUnavailableError
from shared.jobs.history import read_progress
from shared.jobs.tally import Tally, decode_tally
from shared.jobs.workers import live_workers
from shared.kinds.kind import Task
from shared.logs import JsonFormatter
from shared.models import model_spec
from tests.calibration_shards import calibration_shard
from tests.folders import Folder
from tests.tasks import record_of, wait_until
from worker.jobs.job_context import JobContext
from worker.jobs.lease_worker import LeaseWorker
from worker.service.metrics import Machine, serve_metrics

SCHEMA = Path(__file__).parent.parent / "docs" / "status.schema.json"
NOWHERE = "redis://localhost:1"


class TestPace:
    def test_hosts_work_side_by_side(self) -> None:
        assert tasks_per_hour({"air": 60.0, "studio": 20.0}, {"air": 1, "studio": 2}) == 60 + 360
        # Nothing is known of the third: it is taken for one like the mean of the others.
        assert tasks_per_hour({"air": 60.0, "studio": 20.0}, {"mini": 1}) == pytest.approx(120)

    def test_a_host_that_has_only_timed_a_pass(self) -> None:
        # Twice as fast as the air, by the passes of both: half of its time.
        assert with_timed_hosts({"air": 60.0}, {"air": 1e12, "studio": 2e12}, None)["studio"] == 30
        # Of a host with records they count, and what its passes come to says nothing.
        assert with_timed_hosts({"air": 60.0}, {"air": 1e12}, 5e12) == {"air": 60.0}
        # Nothing is finished: what the passes come to.
        assert with_timed_hosts({}, {"air": 1e12}, 5e12) == {"air": 5.0}
        assert with_timed_hosts({}, {"air": 1e12}, None) == {}
        assert with_timed_hosts({"mini": 9.0}, {"air": 1e12}, None) == {"mini": 9.0}

    def test_nothing_is_made_up(self) -> None:
        assert tasks_per_hour({}, {"air": 1}) is None
        assert tasks_per_hour({"air": 60.0}, {}) is None
        assert seconds_left([3, 0], [None, None]) == [None, 0]

    @given(
        st.lists(st.tuples(st.integers(0, 500), st.floats(1, 5000, allow_nan=False)), min_size=1, max_size=6)
    )
    def test_parts_that_share_the_workers(self, parts: list[tuple[int, float]]) -> None:
        """Judged by going through it: each part with tasks left has its equal share of all workers."""
        work = [3600 * tasks / rate for tasks, rate in parts]
        expected, now = [0.0] * len(parts), 0.0
        while active := [place for place, left in enumerate(work) if left > 1e-9]:
            step = min(work[place] for place in active)
            now += step * len(active)
            for place in active:
                work[place] -= step
                expected[place] = now
        found = seconds_left([tasks for tasks, _ in parts], [rate for _, rate in parts])
        assert found == pytest.approx(expected, rel=1e-6, abs=1e-3)

    def test_seconds_are_means_by_host(self) -> None:
        class Each(msgspec.Struct):
            host: str
            seconds: float

        records: Any = [Each("air", 4.0), Each("air", 6.0), Each("studio", 1.0), Each("odd", float("nan"))]
        assert seconds_by_host(records) == {"air": 5.0, "studio": 1.0}


@pytest.mark.parametrize(
    ("seconds", "words", "letters"),
    [
        (None, "-", "-"),
        (44.6, "45 s", "45s"),
        (725, "12 min", "12m"),
        (12_000, "3 h 20 min", "3h20m"),
        (187_200, "2 d 4 h", "2d4h"),
    ],
)
def test_durations(seconds: float | None, words: str, letters: str) -> None:
    assert duration(seconds) == words
    assert short(seconds) == letters


def test_rates() -> None:
    assert [rate(each) for each in (None, 3.21, 7150.4)] == ["-", "3.2", "7,150"]


@pytest.fixture
def folder(tmp_path: Path, redis: Redis, redis_url: str) -> Folder:
    """Four images: one collected, one finished, two queued."""
    folder = Folder(tmp_path / "calib", redis, redis_url, 4)
    for task in folder.images[:2]:
        folder.leave(task, calibration_shard(task.image_index).to_bytes(), host="air", seconds=90.0)
        folder.call("collect")
    third = folder.images[2]
    folder.queue.withdraw([third.id])
    folder.leave(third, calibration_shard(2).to_bytes(), host="air", seconds=90.0)
    return folder


def worker_of(folder: Folder, function: Any) -> LeaseWorker:
    worker = LeaseWorker(
        folder.queue.name,
        connection=Redis.from_url(folder.redis_url),
        beat_connection=Redis.from_url(folder.redis_url),
        functions={"calibration": function},
        host="air",
        name="air-1-abc",
        start_id="start",
        beat_seconds=0.05,
        versions={"bitfleet": "9.9", "mlx": "0.1\x1b[2J"},
    )
    # Signal handlers are the process's, and that is pytest's.
    worker._install_signal_handlers = lambda: None  # type: ignore[method-assign]
    return worker


def test_who_does_what_at_which_step(folder: Folder, redis: Redis) -> None:
    seen: dict[str, Any] = {}

    def look(task: Task, context: JobContext) -> dict[str, Any]:
        context.check("step 2/3")
        wait_until(lambda: task.id in read_progress(redis, folder.queue.name))
        seen["json"] = folder.call("status", "--json")
        seen["prometheus"] = folder.call("status", "--prometheus").output
        seen["text"] = folder.call("status").output
        return {}

    worker_of(folder, look).work(burst=True, logging_level="CRITICAL")
    assert seen["json"].exit_code == 0, seen["json"].output
    found = json.loads(seen["json"].output)
    jsonschema.validate(found, json.loads(SCHEMA.read_text()))
    (part,) = found["parts"]
    counts = {name: part[name] for name in ("wanted", "queued", "running", "finished", "collected", "failed")}
    assert counts == {"wanted": 4, "queued": 0, "running": 1, "finished": 1, "collected": 2, "failed": 0}
    assert part["tasks_per_hour"] == 40
    assert part["seconds_left"] == found["seconds_left"] == 90
    (worker,) = found["workers"]
    assert (worker["name"], worker["host"], worker["state"]) == ("air-1-abc", "air", "busy")
    assert (worker["task"], worker["step"]) == ("image 3", "step 2/3")
    assert 0 < worker["lease_seconds"] <= 45
    assert worker["versions"]["bitfleet"] == "9.9"
    assert "\x1b" not in seen["text"]
    assert "image 3, step 2/3" in seen["text"]
    assert metrics(seen["prometheus"])["bitfleet_tasks", "state=running"] == 1
    assert metrics(seen["prometheus"])["bitfleet_seconds_per_task", "host=air"] == 90


def test_before_the_first_record_a_timed_pass_tells_the_rate(
    tmp_path: Path, redis: Redis, redis_url: str
) -> None:
    folder, seen = Folder(tmp_path / "calib", redis, redis_url, 4), dict[str, Any]()
    folder.call("collect")
    model = model_spec(folder.images[0].run.model)
    cost = cost_of("calibration", model, TaskSize.of(folder.images[0].run, model))

    def look(task: Task, context: JobContext) -> dict[str, Any]:
        seen.setdefault("before", json.loads(folder.call("status", "--json").output)["parts"][0])
        # An image takes 90 seconds.
        context.tell_speed(cost.forward_passes * cost.forward_flops / 90)
        seen.setdefault("after", json.loads(folder.call("status", "--json").output)["parts"][0])
        return {}

    worker_of(folder, look).work(burst=True, logging_level="CRITICAL")
    assert (seen["before"]["tasks_per_hour"], seen["before"]["seconds_left"]) == (None, None)
    assert seen["after"]["tasks_per_hour"] == pytest.approx(40)
    assert seen["after"]["seconds_left"] == pytest.approx(360)
    assert seen["after"]["seconds_by_host"] == {}, "of records only"


def metrics(text: str) -> dict[tuple[str, str], float]:
    """By name and the last label."""
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            label = [f"{name}={value}" for name, value in sample.labels.items()]
            for each in label or [""]:
                found[sample.name, each] = sample.value
    return found


def test_what_a_worker_has_done_is_told_of_its_kind(folder: Folder, redis: Redis) -> None:
    tallies: list[Tally] = []

    def fail_or_not(task: Task, context: JobContext) -> dict[str, Any]:
        if not tallies:
            tallies.append(worker.tally)
            redis.zrem(folder.queue.started_job_registry.key, worker._attempt.execution.composite_key)
            redis.rpush(folder.queue.key, task.id)
        return {}

    worker = worker_of(folder, fail_or_not)
    worker.work(burst=True, logging_level="CRITICAL")
    assert worker.tally.leases_lost == 1
    assert worker.tally.done["calibration"].tasks == 2
    worker.register_birth()
    worker._maintain(worker.connection)
    (info,) = live_workers(folder.queue)
    assert info.tally == worker.tally
    registry = CollectorRegistry(auto_describe=False)
    registry.register(Machine(folder.redis_url, folder.queue.name, "start"))
    found = metrics(generate_latest(registry).decode())
    assert found["bitfleet_tasks_done_total", "kind=calibration"] == 2
    assert found["bitfleet_leases_lost_total", "worker=air-1-abc"] == 1
    assert found["bitfleet_redis_up", ""] == 1
    other = Machine(NOWHERE, folder.queue.name, "start")
    assert [family.name for family in other.collect()] == ["bitfleet_redis_up"]


def test_a_tally_that_is_none_counts_nothing() -> None:
    for text in (b"", b"[]", b'{"done": {"calibration": {"tasks": -1}}}', b'{"failed": 1e400}'):
        assert decode_tally(text) == Tally()


def test_a_port_that_is_taken_is_one_line(folder: Folder) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"--metrics-port {port}"):
            serve_metrics(folder.redis_url, "q", "start", bind="127.0.0.1", port=port)


def test_the_schema_is_the_documented_one() -> None:
    assert json.loads(SCHEMA.read_text()) == msgspec.json.schema(RunStatus)


class TestWithoutRedis:
    def test_the_folder_tells_what_it_knows(self, folder: Folder, capsys: pytest.CaptureFixture[str]) -> None:
        look(folder, named=False, form="json")
        found = json.loads(capsys.readouterr().out)
        jsonschema.validate(found, json.loads(SCHEMA.read_text()))
        assert not found["redis"]
        assert found["parts"][0]["collected"] == 2
        assert "this is what the folder knows: no Redis at redis://localhost:1" in found["notes"][0]

    def test_a_redis_that_was_named_must_be_there(self, folder: Folder) -> None:
        with pytest.raises(RedisUnavailableError):
            look(folder, named=True, form="json")

    def test_that_of_producer_run_is_found(self, folder: Folder, capsys: pytest.CaptureFixture[str]) -> None:
        with RedisServer(folder.folder.state_dir / "redis"):
            look(folder, named=False, form="json")
        found = json.loads(capsys.readouterr().out)
        assert found["redis"]
        assert found["parts"][0]["queued"] == 0


def look(folder: Folder, *, named: bool, form: str, watch: float | None = None) -> None:
    command.status(folder.folder.root, NOWHERE, None, named=named, watch=watch, form=form)


def test_watching_a_pipe_gives_lines_and_ends_with_the_work(folder: Folder) -> None:
    for task in folder.images[3:]:
        folder.leave(task, calibration_shard(task.image_index).to_bytes())
    folder.call("collect")
    folder.queue.withdraw(task.id for task in folder.images)
    result = folder.call("status", "--watch")
    assert result.exit_code == 0, result.output
    assert result.output.count("\n") == 1
    assert "calibration 4/4; 0 workers" in result.output
    assert folder.call("status", "--watch", "--json").exit_code == 2


def busy_run(workers: int) -> RunStatus:
    part = PartStatus(
        title="sensitivity 18528f306bf7",
        kind="sensitivity",
        wanted=20_000,
        queued=15_000,
        running=12,
        finished=1000,
        collected=3988,
        failed=99,
        tasks_per_hour=12_345.0,
        seconds_left=200_000.0,
    )
    worker = WorkerStatus(
        name="macbook-pro-2-12345-abcdef",
        host="macbook-pro-2",
        state="busy",
        task="multimodal_transformer_blocks.12.image_transformer_block.attn.q_proj at 4 bits",
        step="40 of 120 samples",
        lease_seconds=44.0,
        tasks_done=1234,
        tasks_per_hour=12_345.0,
        versions={"bitfleet": "0.2.0", "mlx": "0.32.4"},
    )
    return RunStatus(
        format=FORMAT,
        at="2026-01-02T03:04:05+00:00",
        folder="calibration_data",
        run="fc46c4f491cf",
        model="demo",
        redis=True,
        parts=[part] * 2,
        workers=[worker] * workers,
    )


@pytest.mark.parametrize("width", [80, 160])
def test_all_figures_are_seen_at_any_width(width: int) -> None:
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    console.print(show(busy_run(3), width))
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert max(map(len, lines)) <= width
    # Only tasks give way.
    assert [line.count("…") for line in lines if "macbook" in line] == [1, 1, 1]
    for figure in ("20000", "15000", "12,345", "2d8h", "macbook-pro-2-12345-abcdef", "44s"):
        assert any(figure in line for line in lines), figure


def test_a_log_for_machines() -> None:
    record = logging.LogRecord("x", logging.WARNING, "", 0, "a\x1b %s", ("b\nc",), None)
    record.task, record.seconds = "cal-1-00000", 1.5
    said = json.loads(JsonFormatter("air-1-abc").format(record))
    assert said["worker"] == "air-1-abc"
    assert said["level"] == "warning"
    assert said["message"] == "a\\u001b b\nc"
    assert (said["task"], said["seconds"]) == ("cal-1-00000", 1.5)
    assert said["time"].endswith("+00:00")


def test_bars_tell_rate_time_left_and_hosts(
    folder: Folder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where no terminal shows them, in a line once a minute."""
    monkeypatch.setattr("producer.console.PACE_SECONDS", -1.0)
    states = [*Ledger(folder.folder, Redis.from_url(folder.redis_url), folder.store).survey()]
    with Bars() as bars:
        bars.show(states, busy_run(1).parts[:1], live_workers(folder.queue))
    assert "12,345 an hour, 2 d 8 h left; no worker is connected" in capsys.readouterr().err


def test_a_store_whose_password_is_kept_nowhere(folder: Folder) -> None:
    run = folder.run_file
    path = folder.folder.run_path
    path.write_bytes(msgspec.json.encode(msgspec.structs.replace(run, store="sftp://***@host/x")))
    result = CliRunner().invoke(command_line(), folder.arguments("status"))
    assert result.exit_code == 2
    assert "run.json keeps no password: give the --store of this run, sftp://***@host/x" in result.output


def command_line() -> Any:
    from producer.cli import main

    return main


def test_records_are_told_apart_by_their_kind(folder: Folder) -> None:
    records = folder.folder.records
    assert {record.id for record in records.latest(10, "cal-")} == {task.id for task in folder.images[:2]}
    assert records.latest(1, "cal-")[0].id == folder.images[1].id
    assert records.latest(10, "sen-") == []
    records.write(record_of(folder.images[3], b"x"))
    assert len(records.ids()) == 3
