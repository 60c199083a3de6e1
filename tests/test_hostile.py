"""Generated hostile jobs, records and shards: no code run, no file outside, no worker's death, each a reason.

Two hundred of each here; `make fuzz` takes 10,000 (BITFLEET_FUZZ says how many).
"""

import ast
import io
import json
import os
import pickle
import re
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis import Redis

from producer.collect import collect_part
from producer.folder.calib_folder import CalibFolder
from producer.folder.run_file import RunFile
from producer.folder.tasks import calibration_tasks
from producer.kinds.calibration import CalibrationPart
from shared.errors import TaskRefusedError, UnknownKindError
from shared.jobs.history import read_events
from shared.jobs.task_queue import is_job_id
from shared.kinds.registry import decode_task, encode_task
from shared.layout import npz
from shared.stores.records import encode_record
from shared.stores.relay_store import RelayStore
from tests.calibration_shards import calibration_shard
from tests.job_fleet import Fleet
from tests.tasks import SETTINGS, image_task, layer_task, record_of
from tests.watch import nothing_forbidden

ROOT = Path(__file__).parent.parent
NUMBER = int(os.environ.get("BITFLEET_FUZZ", "200"))
BATCH = 10

pytestmark = pytest.mark.slow


def fuzz(number: int) -> Any:
    quiet = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
    return settings(
        max_examples=number, deadline=None, suppress_health_check=quiet, derandomize=NUMBER <= 200
    )


class Evil:
    """What a pickle would run."""

    def __reduce__(self) -> Any:
        return os.system, ("touch canary",)


BOMB = zlib.compress(bytes(5_000_000))
PATHS = [
    "../../etc/cron.d/x",
    "/etc/passwd",
    "..",
    "a/../../b",
    "~/x",
    "C:\\x",
    "file:///etc/x",
    "x\0y",
    "x\n",
]
NAMES = [
    "calibration",
    "sensitivity",
    "sketch",
    "os.system",
    "builtins.eval",
    "shared.files.write_atomically",
    "rq.job.Job",
    "tests.watch.trap",
]
ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=30),
    st.sampled_from([*PATHS, *NAMES, "relay", "[" * 2000, "9" * 5000]),
    st.lists(st.integers(), max_size=3),
    st.dictionaries(st.text(max_size=5), st.integers(), max_size=3),
)
FIELDS = [
    "success_callback_name", "failure_callback_name", "stopped_callback_name",
    "success_callback_timeout", "webhooks", "meta", "origin", "timeout", "result_ttl", "retries_left",
    "retry_intervals", "repeats_left", "created_at", "enqueued_at", "started_at", "ended_at",
    "last_heartbeat", "worker_name", "description", "dependency_ids", "group_id", "status", "exc_info",
    "serializer", "ttl", "enqueue_at_front_on_retry", "unknown",
]  # fmt: skip
BYTES = st.one_of(
    st.binary(max_size=60),
    st.sampled_from(
        [b"", b"\xff\xfe", b"NaN", b"inf", b"-1", b"1e999", pickle.dumps(Evil()), *map(str.encode, PATHS)]
    ),
    ODD.map(lambda value: json.dumps(value, default=str).encode()),
)
WHOLE = {task.id: task for task in (image_task(7), layer_task(), layer_task(bits=2))}
TASKS = st.sampled_from(list(WHOLE.values()))


@st.composite
def task_texts(draw: st.DrawFn) -> tuple[str, str]:
    """A task's id, and its JSON with a few fields changed."""
    task = draw(TASKS)
    plain: dict[str, Any] = msgspec.to_builtins(task)
    for _ in range(draw(st.integers(0, 2))):
        place = draw(st.sampled_from([plain, plain["run"], plain.get("sensitivity", plain)]))
        if isinstance(place, dict) and place:
            place[draw(st.one_of(st.sampled_from(sorted(place)), st.text(max_size=8)))] = draw(ODD)
    return task.id, json.dumps(plain)


@st.composite
def jobs(draw: st.DrawFn) -> tuple[bytes, dict[str, Any]]:
    """A job's id and its hash."""
    task_id, text = draw(task_texts())
    call = [draw(st.sampled_from(NAMES)), draw(st.one_of(st.none(), ODD)), [text], {}]
    if draw(st.booleans()):
        call[draw(st.integers(0, 3))] = draw(ODD)
    packed = zlib.compress(json.dumps(call).encode())
    data = draw(
        st.one_of(
            st.just(packed),
            BYTES,
            BYTES.map(zlib.compress),
            st.integers(0, len(packed)).map(lambda end: packed[:end]),
            st.just(zlib.compress(pickle.dumps(tuple(call)))),
            st.just(zlib.compress(pickle.dumps(Evil()))),
            st.just(BOMB),
        )
    )
    names = st.sampled_from(FIELDS)
    fields = draw(st.dictionaries(names, st.one_of(BYTES, st.sampled_from(NAMES)), max_size=4))
    if draw(st.booleans()):
        fields |= {f"{draw(st.sampled_from(['success', 'failure']))}_callback_name": "tests.watch.trap"}
    job_id = draw(
        st.one_of(
            st.just(task_id.encode()), st.binary(min_size=1, max_size=20), st.from_regex(rb"\A[a-z-]{1,20}\Z")
        )
    )
    return job_id, {"data": data, **fields}


@given(batch=st.lists(jobs(), min_size=BATCH, max_size=BATCH))
@fuzz(max(1, NUMBER // BATCH))
def test_jobs(
    redis: Redis, redis_url: str, tmp_path: Path, batch: list[tuple[bytes, dict[str, Any]]]
) -> None:
    redis.flushall()
    fleet = Fleet(redis, redis_url)
    for job_id, fields in batch:
        fleet.inject(job_id, fields)
    good = image_task(1)
    fleet.queue.enqueue_tasks([good])
    with nothing_forbidden(tmp_path):
        fleet.work()
    # The worker lived to do the last one, and left nothing behind that looks on its way.
    assert fleet.ran[-1] == good.id
    assert fleet.queue.in_flight().ids == frozenset()
    # What ran is one of the whole tasks, under its own id; all else has its reason.
    assert set(fleet.ran) <= {good.id, *WHOLE}
    failed = fleet.queue.failed_ids()
    for name in {job_id.decode() for job_id, _ in batch if is_job_id(job_id)} - set(fleet.ran):
        assert name in failed
        events = [event for event in read_events(redis, name) if event.outcome == "failed"]
        assert events
        assert re.search("refused|not a task this revision knows", events[-1].detail)


@given(text=task_texts())
@fuzz(NUMBER)
def test_a_decoded_task_is_within_its_limits(text: tuple[str, str]) -> None:
    try:
        task = decode_task(text[1])
    except (TaskRefusedError, UnknownKindError):
        return
    assert decode_task(encode_task(task)) == task
    for name in (task.id, task.namespace, task.store_id, task.run.id):
        assert re.fullmatch(r"[A-Za-z0-9_-]{1,200}", name)


SHARD = calibration_shard().to_bytes()
RUN = RunFile(settings=SETTINGS, prompts=("a circle",), store_id="relay", store=None)
IMAGE = calibration_tasks(RUN)[0]


@st.composite
def shard_bytes(draw: st.DrawFn) -> bytes:
    """A good shard cut, altered or spliced, or bytes of other kinds."""
    data = bytearray(SHARD)
    for _ in range(draw(st.integers(1, 6))):
        # Names, sizes and offsets are near both ends.
        near = st.one_of(st.integers(0, 300), st.integers(len(data) - 900, len(data) - 1))
        place = max(0, min(len(data) - 1, draw(st.one_of(near, st.integers(0, len(data) - 1)))))
        insert = draw(
            st.one_of(
                st.binary(max_size=8), st.sampled_from([b"../../x.npy", b"/etc/x.npy", b"|O", b"\xff" * 8])
            )
        )
        data[place : place + len(insert)] = insert
    return draw(
        st.one_of(st.just(bytes(data)), st.just(bytes(data[: draw(st.integers(0, len(data)))])), BYTES)
    )


@st.composite
def crafted_shards(draw: st.DrawFn) -> bytes:
    """An archive with the right names, and members whose headers lie or ask for objects."""
    arrays = {name: array for name, array in npz.unpack(SHARD).items() if name != "preview_png"}
    buffer = io.BytesIO()
    with zipfile.ZipFile(
        buffer, "w", draw(st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]))
    ) as archive:
        for name, array in arrays.items():
            plain = io.BytesIO()
            np.lib.format.write_array(plain, array, allow_pickle=False)
            hostile = draw(st.one_of(st.none(), st.none(), st.none(), npy_members()))
            archive.writestr(f"{name}.npy", plain.getvalue() if hostile is None else hostile)
        more = draw(st.sampled_from(["preview_png", *PATHS, "x" * 300]))
        archive.writestr(f"{more}.npy", draw(npy_members()))
    return buffer.getvalue()


@st.composite
def npy_members(draw: st.DrawFn) -> bytes:
    """An NPY of any dtype and shape, its content being a pickle that would run something."""
    kinds = ["|O", "|u1", "<f4", "<f8", ">i4", "|V8", "<U5", "|S0", "<M8[s]", "f4'}", [("a", "|O")]]
    sizes = st.sampled_from([0, 1, 2, 5, 128, -1, 2**31, 2**62])
    header = {
        "descr": draw(st.sampled_from(kinds)),
        "fortran_order": draw(st.booleans()),
        "shape": tuple(draw(st.lists(sizes, max_size=4))),
    }
    text = draw(
        st.one_of(st.just(repr(header)), st.sampled_from(["__import__('os').system('x')", "(" * 5000, ""]))
    )
    version = draw(st.sampled_from([(1, 0), (2, 0), (3, 0), (9, 9)]))
    length = struct.pack("<H" if version == (1, 0) else "<I", len(text) + 1)
    content = draw(
        st.sampled_from([pickle.dumps(np.array([Evil()])), pickle.dumps(Evil()), b"", bytes(1000)])
    )
    return b"\x93NUMPY" + bytes(version) + length + text.encode("latin1") + b"\n" + content


@given(data=st.one_of(shard_bytes(), crafted_shards()), record=st.one_of(st.none(), BYTES, task_texts()))
@fuzz(NUMBER)
def test_shards_and_records(redis: Redis, tmp_path: Path, data: bytes, record: Any) -> None:
    """A worker gone bad leaves them, with a record that vouches for them or a hostile one."""
    redis.flushall()
    store = RelayStore(redis)
    folder = CalibFolder(tmp_path / "calibration_data")
    honest = record_of(IMAGE, data)
    store.put(honest, data)
    if isinstance(record, tuple):
        changed = json.loads(encode_record(honest)) | {"task": json.loads(record[1])}
        record = json.dumps(changed).encode()
    if record is not None:
        redis.hset(f"bitfleet:records:{IMAGE.namespace}", IMAGE.id, record)
    with nothing_forbidden(folder.root):
        intake = collect_part(CalibrationPart(folder, RUN), store)[1]
    assert store.record_ids(IMAGE.namespace) == set(), "it is asked for again, or collected"
    if intake.merged:
        check_manifest_is_whole(folder)
        for path in folder.root.rglob("*.*"):
            path.unlink()
    else:
        (problem,) = intake.problems
        assert problem.startswith("image 0: dropped, to be computed again: ")
        assert len(problem) < 1000
        assert problem.isprintable()
        assert not folder.manifest_path.exists()


def check_manifest_is_whole(folder: CalibFolder) -> None:
    names = json.loads(folder.manifest_path.read_bytes())["sample_files"]
    assert len(names) == SETTINGS.num_steps
    assert all((folder.root / name).is_file() and ".." not in name for name in names)


SOURCES = sorted(path for part in ("shared", "producer", "worker") for path in (ROOT / part).rglob("*.py"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_of_ours_can_read_a_pickle_or_run_text(path: Path) -> None:
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            assert not {"pickle", "cloudpickle", "dill", "marshal", "shelve", "joblib"} & {
                name.partition(".")[0] for name in names
            }
        if isinstance(node, ast.Call):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            words = {word.arg: word.value for word in node.keywords}
            if "allow_pickle" in words:
                assert getattr(words["allow_pickle"], "value", None) is False
            if ast.unparse(node.func) in ("np.load", "numpy.load", "npy.read_array", "npy.write_array"):
                assert "allow_pickle" in words, "say it, whatever its default"
            if ast.unparse(node.func) == "torch.load":
                assert getattr(words.get("weights_only"), "value", None) is True
            if called in ("eval", "exec", "loads_pickle"):
                # torch's eval takes no argument: it is no text that is run.
                assert ast.unparse(node.func) == "mx.eval" or not (node.args or node.keywords)
            assert "shell" not in words
