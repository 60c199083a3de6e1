"""Open the store of a run."""

from pathlib import Path

from redis import Redis

from shared.stores.folder_store import FolderStore
from shared.stores.relay_store import RelayStore
from shared.stores.store import ShardStore


def open_store(url: str | None, connection: Redis, *, create: bool = False) -> ShardStore:
    """Return the folder store at `url`, or the Redis relay when there is no URL.

    With `create`, a folder that is no store yet becomes one. Only the producer does this.

    Raises:
        StoreError: the URL can't be used.
        WrongStoreError: there is no store, and `create` is False.
    """
    return FolderStore.open(url, create=create) if url else RelayStore(connection)


def absolute_store(store_url: str | None) -> str | None:
    """Return a relative folder as an absolute one, so that it means the same from every working directory."""
    # A colon without a slash before it: a URL with a typo, which the store refuses.
    if store_url is None or ":" in store_url.partition("/")[0]:
        return store_url
    return str(Path(store_url).absolute())
