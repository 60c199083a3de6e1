"""Redis with TLS and users: who gets in, what each may do, and that no password shows anywhere."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from redis.exceptions import NoPermissionError, RedisError
from rq.exceptions import DequeueTimeout

from producer.collect import Collector
from producer.enqueue import enqueue_calibration
from producer.fleet import Fleet
from producer.folder.calib_folder import CalibFolder
from producer.folder.tasks import calibration_tasks
from producer.jobs.claims import claims_key
from producer.ledger import Ledger
from producer.steering import halt
from producer.steering.cancel import cancel
from producer.steering.failures import failures
from producer.steering.forget import forget
from producer.steering.retry import retry
from producer.steering.runs import UNCLAIMED, find_run, runs
from shared.cli import _one_line
from shared.errors import RedisUnavailableError
from shared.jobs.connection import connect
from shared.jobs.history import Progress, read_events, set_progress
from shared.jobs.orders import orders_key
from shared.jobs.task_queue import TaskQueue, queue_name
from shared.jobs.workers import live_workers
from shared.kinds.kind import Task
from shared.stores.relay_store import RelayStore
from tests.calibration_shards import calibration_shard
from tests.tasks import SETTINGS, record_of, wait_until
from tests.tls_redis import PASSWORDS, ROOT, TlsRedis
from worker.jobs.lease_worker import LeaseWorker
from worker.jobs.maintenance import return_lost_jobs
from worker.jobs.set_aside import SetAside
from worker.service.canary_votes import Canary, compare_with_others, note_work

QUEUE = queue_name("relay")
USERS = ["worker", "producer"]
FORBIDDEN = [
    ["FLUSHALL"],
    ["FLUSHDB"],
    ["CONFIG", "GET", "*"],
    ["CONFIG", "SET", "dir", "/tmp"],
    ["KEYS", "*"],
    ["SCAN", "0"],
    ["RANDOMKEY"],
    ["ACL", "LIST"],
    ["SAVE"],
    ["SHUTDOWN"],
    ["MODULE", "LIST"],
    ["CLIENT", "KILL", "TYPE", "normal"],
    ["CLIENT", "LIST"],
    ["SCRIPT", "FLUSH"],
    ["FUNCTION", "LIST"],
    ["REPLICAOF", "NO", "ONE"],
    ["MONITOR"],
    ["PUBLISH", "rq:pubsub:x", "shutdown"],
    ["SUBSCRIBE", "rq:pubsub:x"],
    ["GET", "others"],
    ["SET", "others", "x"],
    ["DEL", "others"],
    ["DEL", "rq:x", "others"],
    ["EVAL", "return redis.call('GET', 'others')", "0"],
    ["EVAL", "return redis.call('FLUSHALL')", "0"],
    ["EVAL", "return redis.call('KEYS', '*')", "0"],
    ["LMOVE", "rq:x", "others", "LEFT", "LEFT"],
    ["RENAME", "rq:x", "others"],
    ["COPY", "others", "rq:x"],
    # Another application's jobs in the same Redis.
    ["RPUSH", "rq:queue:default", "x"],
    ["ZADD", "rq:wip:default", "1", "x"],
    ["EVAL", "return redis.call('DEL', KEYS[1])", "1", "rq:queue:default"],
]
FORBIDDEN_TO = {
    # A stolen worker's password stops no producer, and a producer's says nothing about machines.
    "worker": [["SET", f"bitfleet:reconcile:{QUEUE}", "x"], ["DEL", f"bitfleet:reconcile:{QUEUE}"]],
    "producer": [
        ["HSET", "bitfleet:canary:x", "a", "b"],
        ["SET", f"bitfleet:grace:{QUEUE}", "1"],
        ["DEL", "rq:execution:x"],
    ],
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TlsRedis]:
    with TlsRedis(tmp_path_factory.mktemp("tls")) as server:
        yield server


@pytest.fixture
def admin(server: TlsRedis) -> Iterator[Redis]:
    with Redis.from_url(server.url("default")) as client:
        client.flushall()
        client.acl_log_reset()
        yield client


def refusals(admin: Redis) -> list[str]:
    """Who was refused what; redis-py takes a refused CLIENT SETINFO as it is."""
    entries = admin.acl_log()
    said = [f"{entry['username']}: {entry['reason']} {entry['object']}" for entry in entries]
    return [line for line in said if not line.endswith(("client|setinfo", "command client"))]


class TestTls:
    @pytest.fixture(autouse=True)
    def only_with_tls(self, server: TlsRedis) -> None:
        if not server.tls:
            pytest.skip("no redis-server on PATH was built with TLS (Debian's and Homebrew's are)")

    def test_a_private_authority_is_named_in_the_url(self, server: TlsRedis) -> None:
        for patient in (True, False):
            assert connect(server.url("worker"), patient=patient).ping()

    def test_without_it_nobody_is_talked_to(self, server: TlsRedis) -> None:
        url = server.url("worker").partition("?")[0]
        with pytest.raises(
            RedisUnavailableError, match=r"CERTIFICATE_VERIFY_FAILED.*\?ssl_ca_certs="
        ) as caught:
            connect(url)
        assert "tests-worker" not in str(caught.value)

    def test_a_certificate_of_another_host(self, server: TlsRedis) -> None:
        with pytest.raises(RedisUnavailableError, match=r"CERTIFICATE_VERIFY_FAILED.*write HOST as"):
            connect(server.url("worker", host="127.0.0.1"))

    @pytest.mark.parametrize("file", ["missing.crt", "redis.key"])
    def test_an_authority_that_can_not_be_read(self, server: TlsRedis, file: str) -> None:
        url = server.url("worker").replace("ca.crt", file)
        with pytest.raises(RedisUnavailableError, match="ssl_ca_certs must name a readable file"):
            connect(url)

    def test_no_tls_towards_tls(self, server: TlsRedis) -> None:
        with pytest.raises(RedisUnavailableError, match="if it speaks TLS, write rediss://"):
            connect(f"redis://localhost:{server.port}")

    def test_a_wrong_password(self, server: TlsRedis) -> None:
        with pytest.raises(RedisUnavailableError, match="refuses us") as caught:
            connect(server.url("worker", "guessed"))
        assert "guessed" not in str(caught.value)


class TestUsers:
    @pytest.mark.parametrize("user", USERS)
    def test_may_not(self, server: TlsRedis, admin: Redis, user: str) -> None:
        admin.set("others", "untouched")
        with Redis.from_url(server.url(user)) as client:
            for command in [*FORBIDDEN, *FORBIDDEN_TO[user]]:
                with pytest.raises(
                    RedisError, match=r"(?i)no permissions|can't (run|access)|unknown command"
                ):
                    client.execute_command(*command)
        assert admin.get("others") == b"untouched"

    @pytest.mark.usefixtures("quick_retries")
    def test_the_main_job(self, server: TlsRedis, admin: Redis, tmp_path: Path) -> None:
        """Enqueue, work, fail, retry, lose a worker, collect: neither user was refused anything."""
        with connect(server.url("producer")) as theirs:
            store = RelayStore(theirs)
            store.set_limit(10_000_000)
            fleet = Fleet(connection=theirs, store=store, store_url=None)
            folder = CalibFolder(tmp_path)
            enqueue_calibration(folder, SETTINGS, ["a circle", "a square", "a star"], 3, fleet)
            assert live_workers(TaskQueue(QUEUE, theirs)) == []
            _lose_a_worker(server, admin)
            work(server, fails={1: 1})
            collector = Collector(Ledger(folder, theirs, store), complain=pytest.fail)
            (part,) = collector.collect()
            assert part.complete
            store.put_blob("0" * 64, b"")
            store.discard_blob("0" * 64)
            assert TaskQueue(QUEUE, theirs).failed_ids() == set()
        assert refusals(admin) == []

    @pytest.mark.usefixtures("quick_retries")
    def test_a_task_that_gives_up(self, server: TlsRedis, admin: Redis, tmp_path: Path) -> None:
        with connect(server.url("producer")) as theirs:
            store = RelayStore(theirs)
            fleet = Fleet(connection=theirs, store=store, store_url=None)
            folder = CalibFolder(tmp_path)
            enqueue_calibration(folder, SETTINGS, ["a circle"], 1, fleet)
            work(server, fails={0: 99})
            (part,) = Collector(Ledger(folder, theirs, store), complain=pytest.fail).collect()
            assert len(part.failures) == 1
            # Asked for again, it has another life.
            enqueue_calibration(folder, SETTINGS, ["a circle"], 1, fleet)
            work(server)
            (part,) = Collector(Ledger(folder, theirs, store), complain=pytest.fail).collect()
            assert part.complete
        assert refusals(admin) == []

    @pytest.mark.usefixtures("quick_retries")
    def test_steering(self, server: TlsRedis, admin: Redis, tmp_path: Path) -> None:
        """Fail, tell, retry, cancel, pause, drain: the worker's rights and the producer's are enough."""
        with connect(server.url("producer")) as theirs:
            store = RelayStore(theirs)
            fleet = Fleet(connection=theirs, store=store, store_url=None)
            folder = CalibFolder(tmp_path)
            enqueue_calibration(folder, SETTINGS, ["a circle", "a square"], 2, fleet)
            assert cancel(folder, fleet, ["image 1"]).queued == 1
            work(server, fails={0: 99})
            ((failure,),) = failures(folder, fleet, [])
            assert failure.hosts == ["here"]
            assert retry(folder, fleet, [], cancelled=True).failed == 1
            assert halt.pause(fleet)
            theirs.hset(orders_key(QUEUE), "drain:here", "x")
            # It leaves, with nothing done.
            work(server)
            assert len(list(halt.halts(fleet))) == 2
            halt.undo_drain(fleet, "here")
            assert halt.resume(fleet)
            assert len(TaskQueue(QUEUE, theirs).in_flight().queued) == 2
            work(server)
            assert store.record_ids(SETTINGS.id) == {
                task.id for task in calibration_tasks(folder.require_run())
            }
            store.put_blob("0" * 64, b"a sample")
            theirs.hdel(claims_key(QUEUE), *theirs.hkeys(claims_key(QUEUE)))
            for name in (SETTINGS.id, UNCLAIMED):
                found = runs(fleet)
                forget(fleet, find_run(found, name), found)
            assert runs(fleet) == []
        assert refusals(admin) == []

    def test_waiting_for_work(self, server: TlsRedis, admin: Redis) -> None:
        # The blocking pop is another command than a burst's.
        with connect(server.url("worker")) as client, pytest.raises(DequeueTimeout):
            TaskQueue.lmove(client, f"rq:queue:{QUEUE}", 1)
        assert refusals(admin) == []

    def test_joining_a_run_and_leaving_one_to_others(self, server: TlsRedis, admin: Redis) -> None:
        admin.set(f"bitfleet:canary:{SETTINGS.id}", "damaged")
        canary = Canary(fingerprint="f" * 64, host="here", worker="w", versions={}, output=[1.0])
        with connect(server.url("worker")) as client:
            compare_with_others(client, SETTINGS, canary)
            note_work(client, SETTINGS, canary)
            SetAside(client, QUEUE, host="here", start_id="x").add("cal-0123456789ab-00000", "no disk")
            assert SetAside(client, QUEUE, host="here", start_id="x").prefixes()
        assert refusals(admin) == []

    def test_missing_rights_are_told(self, server: TlsRedis, admin: Redis) -> None:
        with Redis.from_url(server.url("worker")) as client, pytest.raises(NoPermissionError) as caught:
            client.flushall()
        assert "docs/redis-users.acl" in _one_line(caught.value)


def work(server: TlsRedis, fails: dict[int, int] | None = None) -> None:
    """A worker until the queue is empty; image i fails the first fails[i] times."""
    left = dict(fails or {})
    with connect(server.url("worker")) as connection, connect(server.url("worker"), patient=False) as beat:
        store = RelayStore(connection)

        def run(task: Task, context: Any) -> dict[str, Any]:
            index = task.image_index  # type: ignore[union-attr]
            if left.get(index, 0):
                left[index] -= 1
                raise RuntimeError("broken for a test")
            set_progress(beat, QUEUE, task.id, Progress(text="step 1/4", host="here", worker="w"))
            read_events(connection, task.id)
            shard = calibration_shard().to_bytes()
            store.has_record(task.namespace, task.id)
            return {"outcome": store.put(record_of(task, shard), shard)}

        worker = LeaseWorker(
            QUEUE,
            connection=connection,
            beat_connection=beat,
            functions={"calibration": run},
            host="here",
            name="access-worker",
            lease_seconds=30,
            beat_seconds=0.2,
        )
        worker._install_signal_handlers = lambda: None  # type: ignore[method-assign]
        worker.work(burst=True, logging_level="CRITICAL")
        return_lost_jobs(beat, QUEUE)


def _lose_a_worker(server: TlsRedis, admin: Redis) -> None:
    """Take a job and never come back; another returns it."""
    with connect(server.url("worker")) as connection:
        worker = LeaseWorker(
            QUEUE,
            connection=connection,
            beat_connection=connection,
            functions={},
            host="gone",
            name="gone-worker",
            lease_seconds=30,
            beat_seconds=1,
        )
        worker.register_birth()
        job, _ = worker.dequeue_job_and_maintain_ttl(1, max_idle_time=1)  # type: ignore[misc]
        execution = worker._take(job, worker.queues[0])
        assert execution
        # Long ago.
        admin.zadd(job.started_job_registry.key, {execution.composite_key: 1}, xx=True)
        return_lost_jobs(connection, QUEUE)
        assert job.id in TaskQueue(QUEUE, connection).in_flight().queued
        worker.register_death()


@pytest.mark.slow
def test_no_password_in_a_process_list_or_in_what_is_said(
    server: TlsRedis, admin: Redis, tmp_path: Path
) -> None:
    """Real processes, a password in REDIS_URL: only the environment, which is private, has it."""
    secrets = [*PASSWORDS.values(), "tests-worker%2F1", "tests-producer%402"]
    environment = {**os.environ, "REDIS_URL": server.url("worker"), "PYTHONPATH": str(ROOT)}
    (tmp_path / "prompts.csv").write_text("prompt\na circle\n")
    process = subprocess.Popen(
        [sys.executable, "-m", "worker.cli", "start", "--workers", "2", "--lease", "4", "--beat", "0.5"],
        env=environment,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        with connect(server.url("producer")) as theirs:
            wait_until(lambda: len(live_workers(TaskQueue(QUEUE, theirs))) == 2, 60)
        command_lines = _command_lines_below(process.pid)
        # A worker that is thrown out says so; a producer that is refused, too.
        refused = subprocess.run(
            [
                *(sys.executable, "-m", "producer.cli", "enqueue-calibration", "--model", "tiny-sd3"),
                *("--prompt-csv", "prompts.csv", "--num-images", "1", "--debug"),
            ],
            env={**environment, "REDIS_URL": server.url("producer", "tests-worker%2F1")},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        process.terminate()
        said, _ = process.communicate(timeout=60)
    assert refused.returncode != 0
    assert "ready: queue" in said
    everything = [said, refused.stdout, refused.stderr, *command_lines]
    shown = [text for text in everything for secret in secrets if secret in text]
    assert shown == []
    # RQ and we keep things in Redis about a worker: names and times, no URL.
    kept = [admin.hgetall(key) for key in admin.keys("rq:worker:*")]
    assert not any(secret in str(kept) for secret in secrets)


def _command_lines_below(pid: int) -> list[str]:
    """Of a process and all its children: three here, a supervisor and its workers."""
    if not Path("/proc").is_dir():
        listing = subprocess.run(["ps", "-axww", "-o", "args="], capture_output=True, text=True, check=True)
        return [line for line in listing.stdout.splitlines() if "worker" in line]
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    below = {pid}
    for _ in range(3):
        below |= {child for child, parent in parents.items() if parent in below}
    lines = [Path(f"/proc/{each}/cmdline").read_text() for each in below]
    assert sum("worker.service.process" in line for line in lines) == 2
    return lines
