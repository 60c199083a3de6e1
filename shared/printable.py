"""Text that others wrote, on its way to a terminal: the one door. A terminal obeys what it is shown.

Names of hosts and folders, progress, prompts, and what Redis or a library says may hold escapes that move the
cursor, hide what follows or rename the window. They are shown as `\\u001b` and the like.
"""

import logging
import re
import unicodedata

MAX_TEXT = 2000
_QUESTIONABLE = re.compile(r"[^ -~]")
"""A letter that has to be looked at. Histories have millions that need not be."""


def printable(text: str, limit: int = MAX_TEXT) -> str:
    """Return `text` in one line, without anything that a terminal would obey.

    Line breaks and tabs become spaces, other control characters their escapes, as in JSON. The result has at
    most `limit` characters.
    """
    shown = _QUESTIONABLE.sub(_shown_in_line, text[: limit + 1])
    return shown if len(shown) <= limit else f"{shown[: limit - 1]}…"


def printable_lines(text: str) -> str:
    """Return `text` without anything that a terminal would obey but its line breaks and tabs."""
    return _QUESTIONABLE.sub(_shown_in_lines, text)


def _shown_in_line(found: re.Match[str]) -> str:
    return " " if found[0] in "\n\r\t" else _shown(found[0])


def _shown_in_lines(found: re.Match[str]) -> str:
    return found[0] if found[0] in "\n\t" else _shown(found[0])


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
