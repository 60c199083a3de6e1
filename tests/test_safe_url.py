"""No password of any URL gets into a message, however the URL is written."""

import re
from urllib.parse import quote

import fsspec
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from shared.errors import BitfleetError
from shared.jobs.connection import connect
from shared.safe_url import UNREADABLE, is_readable, safe_url, without_secrets
from shared.stores.folder_store import FolderStore

ENCODE = " (percent-encode the password)"


@pytest.mark.parametrize(
    ("url", "safe"),
    [
        ("redis://host:6379/0", "redis://host:6379/0"),
        ("redis://user:secret@host:6379/0", "redis://***@host:6379/0"),
        ("redis://:secret@host", "redis://***@host"),
        ("redis://secret@host", "redis://***@host"),
        ("redis://:secret@[::1]:6379", "redis://***@[::1]:6379"),
        ("redis://:se@cret@host", "redis://***@host"),
        ("redis://host?password=secret&db=1", "redis://host"),
        ("redis://host?password=sec@ret", f"redis://***{ENCODE}"),
        ("redis://:7/secret@host", f"redis://***{ENCODE}"),
        ("redis://:7#secret@host", f"redis://***{ENCODE}"),
        ("redis://:7?secret@host", f"redis://***{ENCODE}"),
        ("redis://user:secret", f"redis://***{ENCODE}"),
        ("redis://:7@secret/host", f"redis://***{ENCODE}"),
        ("redis://:secret@host:99999999", f"redis://***{ENCODE}"),
        ("redis:/:secret@host", UNREADABLE),
        ("redis//:secret@host", UNREADABLE),
        ("//:secret@host", UNREADABLE),
        ("redis;//:secret@host", UNREADABLE),
        (":secret@host:6379", UNREADABLE),
        ("user:secret", UNREADABLE),
        ("", ""),
        ("https://host/x?X-Amz-Signature=secret&a=b", "https://host/x"),
        ("unix:///run/redis.sock", "unix:///run/redis.sock"),
        ("unix://:secret@/run/redis.sock?db=1", "unix://***@/run/redis.sock"),
        ("sftp://me:secret@nas/volume", "sftp://***@nas/volume"),
        ("s3://KEY:SECRET@bucket/folder", "s3://***@bucket/folder"),
        ("s3://KEY:SEC/RET@bucket/folder", f"s3://***{ENCODE}"),
        ("simplecache::s3://KEY:SECRET@bucket", "simplecache::s3://***@bucket"),
        ("zip://a.zip::sftp://me:secret@nas/a", f"zip://***{ENCODE}"),
        ("zip://a.zip::s3://bucket/a", f"zip://***{ENCODE}"),
        ("/Volumes/share", "/Volumes/share"),
        ("/Volumes/me@home/out", "/Volumes/me@home/out"),
        ("/home/me/s3:/KEY:SECRET@bucket", UNREADABLE),
        ("s3:KEY/SECRET", UNREADABLE),
        ("out/share", "out/share"),
    ],
)
def test_what_is_shown(url: str, safe: str) -> None:
    assert safe_url(url) == safe


# Letters of their own, so that none of a password is also elsewhere in a message.
ODD = st.text(alphabet="ΑΒΓΔΕ/#?@:%&=+ [].,\\;", min_size=1, max_size=12)
SCHEMES = [
    "redis",
    "rediss",
    "unix",
    "s3",
    "sftp",
    "simplecache::s3",
    "zip://a.zip::sftp",
    "re dis",
    "redis:",
]
WHERE = [
    "{scheme}://{user}:{password}@host:6379/0",
    "{scheme}://:{password}@host",
    "{scheme}://{password}@host/folder",
    "{scheme}://{user}:{password}@/run/redis.sock?db=1",
    "{scheme}://host/0?password={password}",
    "{scheme}://host/0?db=1&token={password}#x",
    "{scheme}:/{user}:{password}@host",
    "{scheme};//{user}:{password}@host",
    "//{user}:{password}@host",
    "{user}:{password}@host:6379",
    ":{password}@host",
    "/home/me/{scheme}:/{user}:{password}@host",
]


def greek(text: str) -> set[str]:
    return set(re.findall(r"[Α-Ε]", text))


@given(
    scheme=st.sampled_from(SCHEMES),
    user=st.sampled_from(["", "me"]),
    password=ODD,
    where=st.sampled_from(WHERE),
    encoded=st.booleans(),
)
@example(scheme="redis", user="", password="Α/Β", where=WHERE[1], encoded=False)
@example(scheme="s3", user="me", password="Α@Β", where=WHERE[4], encoded=False)
@example(scheme="redis", user="", password="&Α", where=WHERE[4], encoded=False)
@example(scheme="redis", user="", password="&Α", where=WHERE[5], encoded=False)
def test_no_letter_of_a_password(scheme: str, user: str, password: str, where: str, encoded: bool) -> None:
    written = quote(password, safe="") if encoded else password
    url = where.format(scheme=scheme, user=user, password=written)
    assert not greek(safe_url(url))
    if encoded and greek(password):
        assert written not in safe_url(url)
    # What a library may say about it.
    assume(len(password) > 1 and greek(password))
    for said in (
        url,
        f"no such host {written}",
        f"port {password!r} is no number",
        f"bucket {user}:{written}",
    ):
        left = without_secrets(said, url)
        assert password not in left
        assert written not in left


@pytest.mark.parametrize(
    "password", ["a-thing-of-mine", "a-thing/of-mine", "a-thing#of-mine", "7/a-thing-of-mine", "7?a-thing"]
)
@pytest.mark.parametrize(
    "url",
    [
        "redis://:{}@nowhere.invalid",
        "redis://me:{}@nowhere.invalid:1/0",
        "redis://{}@nowhere.invalid",
        "rediss://nowhere.invalid?password={}",
        "redis:/:{}@nowhere.invalid",
        ":{}@nowhere.invalid",
        "unix://:{}@/nowhere/redis.sock",
    ],
)
def test_what_is_said_when_redis_can_not_be_reached(url: str, password: str) -> None:
    with pytest.raises(BitfleetError) as caught:
        connect(url.format(password))
    assert "of-mine" not in str(caught.value)
    assert "thing" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("password", ["pass-of-mine", "pass/of-mine", "pass#of-mine", "pass?of-mine"])
@pytest.mark.parametrize(
    "url",
    [
        "nosuch://KEY:{}@bucket/x",
        "memory://KEY:{}@bucket/x",
        "simplecache::nosuch://KEY:{}@bucket/x",
        "zip://a.zip::nosuch://KEY:{}@bucket/x",
        "s3:/KEY:{}@bucket",
        "s3:KEY:{}",
        "KEY:{}@bucket",
    ],
)
def test_what_is_said_when_a_store_can_not_be_used(
    url: str, password: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given_url = url.format(password)

    def repeat(*_: object, **__: object) -> None:
        raise ValueError(f"Invalid bucket name {given_url.rpartition('://')[2]!r}")

    monkeypatch.setattr(fsspec.core, "url_to_fs", repeat)
    with pytest.raises(BitfleetError) as caught:
        FolderStore.open(given_url)
    assert "of-mine" not in str(caught.value)
    assert "of-mine" not in str(caught.value.__cause__)
    assert is_readable(given_url) or "percent-encode" in str(caught.value)
