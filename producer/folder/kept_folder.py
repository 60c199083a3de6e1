"""Folders of requests whose shards are kept: levels/<id>/, weights/<id>/, confirms/<id>/."""

from pathlib import Path
from typing import Generic, TypeVar

from msgspec import Struct

from producer.folder.json_file import JsonFile
from producer.folder.shard_folder import ShardFolder
from shared.errors import InputError
from shared.kinds.confirm import ConfirmSettings
from shared.kinds.levels import LevelsSettings
from shared.plan import Choice
from shared.plan_file import PlanPrompt

Request = TypeVar("Request", bound=Struct)


class WeightsRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """request.json of weight errors."""

    candidates: tuple[Choice, ...]


class LevelsRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """request.json of levels. Images can be added later."""

    settings: LevelsSettings
    prompts: tuple[PlanPrompt, ...]
    weights_id: str
    """Of the weight errors that were asked for with them."""


class ConfirmRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """request.json of a confirmation; variants.json lies beside it."""

    settings: ConfirmSettings
    prompts: tuple[PlanPrompt, ...]
    names: tuple[str, ...]
    """Of the variants, in their order."""
    plans: tuple[str, ...]
    """Ids of the plans among them: the first variants."""


class KeptFolder(ShardFolder, Generic[Request]):
    """One request's folder."""

    def __init__(self, root: Path, kind: type[Request]) -> None:
        super().__init__(root)
        self._request = JsonFile(self.request_path, kind)

    def read_request(self) -> Request | None:
        """Return the request; None if there is none."""
        return self._request.read()

    def require_request(self) -> Request:
        """Return the request.

        Raises:
            InputError: there is none.
        """
        request = self.read_request()
        if request is None:
            raise InputError(f"{self.request_path} is missing; enqueue it again")
        return request

    def write_request(self, request: Request) -> None:
        """Write the request, in place of an older one."""
        self._request.write(request)


class KeptFolders(Generic[Request]):
    """All folders of one sort of request. Each is opened once, so that nothing unchanged is read twice."""

    def __init__(self, root: Path, kind: type[Request]) -> None:
        self._root, self._kind = root, kind
        self._open: dict[str, KeptFolder[Request]] = {}

    def open(self, request_id: str) -> KeptFolder[Request]:
        """Return the folder of one request, which need not exist."""
        if request_id not in self._open:
            self._open[request_id] = KeptFolder(self._root / request_id, self._kind)
        return self._open[request_id]

    def all(self) -> list[KeptFolder[Request]]:
        """Return the folders of all requests, sorted by id, those whose request is lost among them."""
        found = {
            path.parent.name for name in ("request.json", "records") for path in self._root.glob(f"*/{name}")
        }
        return [self.open(name) for name in sorted(found)]
