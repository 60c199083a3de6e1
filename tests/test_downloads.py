"""Each cause for which a model's file can't be had gets its own line and cure."""

import errno
import re

import httpx
import pytest
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)

from worker.families.downloads import unavailable


def answered(kind: type[HfHubHTTPError], status: int) -> HfHubHTTPError:
    request = httpx.Request("GET", "https://huggingface.co/x/y")
    return kind("no", response=httpx.Response(status, request=request))


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (answered(GatedRepoError, 403), r"is gated; accept the licence at https://huggingface\.co/x/y"),
        (answered(RepositoryNotFoundError, 401), "can't be seen without a login; look at"),
        (answered(HfHubHTTPError, 403), "is refused to this token; run `hf auth whoami`"),
        (answered(HfHubHTTPError, 503), r"\(the hub answers 503\); wait, it is tried again by itself"),
        (answered(HfHubHTTPError, 429), r"\(the hub answers 429\); wait"),
        (OSError(errno.ENOSPC, "No space left on device"), "has no room on this disk; make room"),
        (PermissionError(errno.EACCES, "Permission denied", "/hub"), "can't be written to /hub"),
        (LocalEntryNotFoundError("offline"), r"\(LocalEntryNotFoundError\); check the network"),
        (httpx.ConnectError("no route"), r"\(ConnectError\); check the network"),
    ],
)
def test_a_line_for_each_cause(error: Exception, says: str) -> None:
    message = str(unavailable("model", "x/y", "model.safetensors", error))
    assert message.startswith("model: model.safetensors of x/y ")
    assert re.search(says, message), message
    assert "delete it" not in message
    assert "--checkpoint" not in message, "a run without one refuses it"
