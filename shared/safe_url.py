"""URLs in messages and logs: the one door through which they go, and the passwords in them do not.

A password stands between the scheme and the last `@`, or in the query. Where a URL is not written as it
should be, nobody can tell where the password ends, and only the scheme is shown.
"""

import re
from urllib.parse import unquote

HIDDEN = "***"
UNREADABLE = "(unreadable URL)"
PERCENT_ENCODE = "percent-encode the password: / is written %2F, # %23, ? %3F, @ %40"

# Also a chain of fsspec's, such as simplecache::s3://bucket.
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]{0,20}(?:::[A-Za-z][A-Za-z0-9+.-]{0,20})*", re.ASCII)
_AUTHORITY = re.compile(r"(?:[\w.~-]*|\[[0-9A-Fa-f:.%]+\])(?::[0-9]{1,5})?")
_DATABASE = re.compile(r"(?:/[0-9]*)?")
_REDIS_SCHEMES = ("redis", "rediss")


def safe_url(url: str) -> str:
    """Return `url` for messages and logs: without user, password, query and fragment.

    A path without a scheme is returned as it is.
    """
    scheme, separator, rest = url.partition("://")
    if not separator:
        return url if _is_path(url) else UNREADABLE
    if not _SCHEME.fullmatch(scheme):
        return UNREADABLE
    shown = _shown(scheme, rest)
    return f"{scheme}://{HIDDEN} (percent-encode the password)" if shown is None else f"{scheme}://{shown}"


def is_readable(url: str) -> bool:
    """Return whether `safe_url` could tell what in the URL is secret and what is not."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        return _is_path(url)
    return bool(_SCHEME.fullmatch(scheme)) and _shown(scheme, rest) is not None


def without_secrets(text: str, url: str) -> str:
    """Return `text`, such as a library's message about `url`, without what `safe_url` does not show of it.

    Of a URL that can't be read nothing is quoted: the result is empty.
    """
    if not is_readable(url):
        return ""
    for secret in _secrets(url):
        text = text.replace(secret, HIDDEN)
    return text


def _shown(scheme: str, rest: str) -> str | None:
    """Return what may be shown behind the scheme; None if that can't be told."""
    before, at, after = rest.rpartition("@")
    # A password with one of these in it, or an @ in a path or query: it looks the same.
    if any(mark in before for mark in "/?#"):
        return None
    plain = re.split("[?#]", after, maxsplit=1)[0]
    authority, slash, path = plain.partition("/")
    if not _AUTHORITY.fullmatch(authority) or "::" in path or "://" in path:
        return None
    if scheme in _REDIS_SCHEMES and not _DATABASE.fullmatch(slash + path):
        return None
    return f"{HIDDEN}@{plain}" if at else plain


def _is_path(text: str) -> bool:
    if text.startswith("/") and not text.startswith("//"):
        return "@" not in text or ":" not in text.rpartition("@")[0]
    return not any(mark in text for mark in "@:?#") and not text.startswith("//")


def _secrets(url: str) -> list[str]:
    """Return the hidden parts of a readable URL, and their parts, longest first."""
    rest = url.partition("://")[2]
    if not rest:
        return []
    before, _, after = rest.rpartition("@")
    query = re.split("[?#]", f"{after}?", maxsplit=1)[1].removesuffix("?")
    found = {before, *before.split(":"), before.partition(":")[2], query}
    found |= {*re.split("[&?#]", query)}
    # A value that was not percent-encoded goes on beyond an & or a #, nobody knows how far.
    starts = [place + 1 for place, letter in enumerate(query) if letter == "="]
    ends = [*(place for place, letter in enumerate(query) if letter in "&?#"), len(query)]
    found |= {query[start:end] for start in starts for end in ends if start < end}
    found |= {unquote(part) for part in found}
    # As Python quotes it.
    found |= {repr(part)[1:-1] for part in found}
    # A single letter stands everywhere.
    return sorted((part for part in found if len(part) > 1), key=len, reverse=True)
