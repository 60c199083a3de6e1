"""Text that others wrote, on its way to a terminal: the one door. A terminal obeys what it is shown.

Names of hosts and folders, progress, prompts, and what Redis or a library says may hold escapes that move the
cursor, hide what follows or rename the window. They are shown as `\\u001b` and the like.
"""

import logging
import socket
import unicodedata
from datetime import UTC, datetime

import msgspec

_HOST = socket.gethostname().split(".")[0] or "unknown"
MAX_TEXT = 2000


def printable(text: str, limit: int = MAX_TEXT) -> str:
    """Return `text` in one line, without anything that a terminal would obey.

    Line breaks and tabs become spaces, other control characters their escapes, as in JSON. The result has at
    most `limit` characters.
    """
    shown = "".join(" " if letter in "\n\r\t" else _shown(letter) for letter in text[: limit + 1])
    return shown if len(shown) <= limit else f"{shown[: limit - 1]}…"


def printable_lines(text: str) -> str:
    """Return `text` without anything that a terminal would obey but its line breaks and tabs."""
    return "".join(letter if letter in "\n\t" else _shown(letter) for letter in text)


def _shown(letter: str) -> str:
    if letter.isprintable() or unicodedata.category(letter) == "Zs":
        return letter
    code = ord(letter)
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


class PrintableFormatter(logging.Formatter):
    """Formats log records so that a terminal obeys nothing in them."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as text."""
        return printable_lines(super().format(record))


class JsonFormatter(logging.Formatter):
    """Formats log records as JSON, one object a line, for machines."""

    FIELDS = ("event", "task", "kind", "group", "seconds")
    """What a record may say beside its message."""

    def __init__(self, who: str) -> None:
        super().__init__()
        self._who = who

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as JSON: time, level, worker, host, message, and what else it says."""
        message = record.getMessage()
        if record.exc_info:
            message = f"{message}\n{self.formatException(record.exc_info)}"
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "worker": self._who,
            "host": _HOST,
            "message": printable_lines(message),
        }
        said = {name: getattr(record, name) for name in self.FIELDS if hasattr(record, name)}
        return msgspec.json.encode(line | said).decode()


def log_to_stderr(level: int, who: str, *, as_json: bool = False) -> None:
    """Let the program's log go to standard error, a line each: the date, who says it, and what."""
    handler = logging.StreamHandler()
    people = PrintableFormatter(f"%(asctime)s {who} %(message)s", datefmt="%Y-%m-%d %H:%M:%S")
    handler.setFormatter(JsonFormatter(who) if as_json else people)
    logging.basicConfig(level=level, handlers=[handler])
