"""Records: what vouches for a shard is itself validated."""

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import ShardCorruptError
from shared.runs import PROTOCOL
from shared.stores.records import MAX_SHARD_BYTES, decode_record, encode_record
from tests.tasks import image_task, layer_task, record_of

RECORD = record_of(layer_task(), b"shard")


def test_round_trip() -> None:
    for task in (image_task(3, prompt="ü\n"), layer_task()):
        record = record_of(task, b"shard")
        assert decode_record(encode_record(record)) == record
        assert record.id == task.id
        assert record.protocol == PROTOCOL


def test_only_its_own_bytes_pass() -> None:
    RECORD.check(b"shard")
    for other in (b"", b"shar", b"shardx", b"sharD"):
        with pytest.raises(ShardCorruptError, match=r"final_layer\.linear at 4 bits"):
            RECORD.check(other)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("size", -1),
        ("size", MAX_SHARD_BYTES + 1),
        ("size", "5"),
        ("sha256", "a" * 63),
        ("sha256", "A" * 64),
        ("sha256", "a" * 64 + "\n"),
        ("fingerprint", "../" * 22),
        ("seconds", "fast"),
        ("versions", {"mlx": 1}),
        ("task", {"type": "other"}),
        ("task", None),
        ("more", 1),
    ],
)
def test_a_field_outside_its_limits(field: str, value: object) -> None:
    content = json.loads(encode_record(RECORD)) | {field: value}
    with pytest.raises(ShardCorruptError):
        decode_record(json.dumps(content).encode())


@pytest.mark.parametrize("field", [name for name in msgspec.structs.asdict(RECORD) if name != "protocol"])
def test_every_field_is_needed(field: str) -> None:
    content = json.loads(encode_record(RECORD))
    del content[field]
    with pytest.raises(ShardCorruptError, match=field):
        decode_record(json.dumps(content).encode())


@given(st.binary(max_size=200))
def test_noise(noise: bytes) -> None:
    with pytest.raises(ShardCorruptError):
        decode_record(noise)


@given(st.data())
def test_flipped_bytes(data: st.DataObject) -> None:
    bad = bytearray(encode_record(RECORD))
    bad[data.draw(st.integers(0, len(bad) - 1))] = data.draw(st.integers(0, 255))
    try:
        decode_record(bytes(bad))
    except ShardCorruptError as error:
        assert "\n" not in str(error)
