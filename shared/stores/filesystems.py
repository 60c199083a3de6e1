"""Open an fsspec filesystem for a store: with its own connection, and only to known SSH servers."""

from pathlib import Path
from typing import Any

from shared.errors import StoreError

CONNECT_SECONDS = 15
SILENCE_SECONDS = 60

_EXTRAS = {"s3": "s3", "s3a": "s3", "sftp": "sftp", "ssh": "sftp"}


def open_filesystem(url: str, label: str) -> tuple[Any, str]:
    """Return a filesystem and the path in it. Keys and passwords come from the usual places of each client.

    Raises:
        StoreError: a package is missing, or the SSH server is unknown.
        Exception: whatever else the filesystem raises.
    """
    # Imported here, so that commands that use the relay answer at once.
    import fsspec

    extra = _EXTRAS.get(url.partition("://")[0])
    try:
        if extra == "sftp":
            return _open_sftp(url)
        # s3fs caches listings, which would hide what other machines write.
        options = {"use_listings_cache": False} if extra == "s3" else {}
        filesystem, root = fsspec.core.url_to_fs(url, **options)
    except ImportError as error:
        mend = f"pip install 'bitfleet[{extra}]'" if extra else str(error)
        raise StoreError(f"store {label} needs a package that is not installed: {mend}") from None
    return filesystem, root


def _open_sftp(url: str) -> tuple[Any, str]:
    import fsspec
    import paramiko

    class KnownHostsOnly(paramiko.MissingHostKeyPolicy):  # type: ignore[misc]
        """Refuse unknown servers, as ssh does; fsspec would trust any."""

        def missing_host_key(self, client: Any, hostname: str, key: Any) -> None:
            path = Path.home() / ".ssh/known_hosts"
            known = paramiko.HostKeys(str(path)) if path.is_file() else paramiko.HostKeys()
            if not known.check(hostname, key):
                raise StoreError(
                    f"{hostname} with this {key.get_name()} key is not in {path}; connect once with ssh, "
                    "compare the fingerprint, and give the same command again"
                )

    filesystem, root = fsspec.core.url_to_fs(
        url,
        host_key_policy=KnownHostsOnly(),
        skip_instance_cache=True,
        timeout=CONNECT_SECONDS,
        banner_timeout=CONNECT_SECONDS,
        auth_timeout=CONNECT_SECONDS,
    )
    # Without a timeout, a connection that died while this machine slept would block for ever.
    filesystem.ftp.get_channel().settimeout(SILENCE_SECONDS)
    return filesystem, root
