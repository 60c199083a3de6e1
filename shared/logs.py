"""The log of a worker: lines for people, or JSON for machines."""

import logging
import socket
from datetime import UTC, datetime

import msgspec

from shared.printable import PrintableFormatter, printable_lines

_HOST = socket.gethostname().split(".")[0] or "unknown"


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
