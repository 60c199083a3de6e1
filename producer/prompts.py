"""Read prompts from a CSV file. The whole file is checked before anything is enqueued."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shared.errors import InputError

COLUMN = "prompt"
MAX_LENGTH = 10_000

_SURPLUS = "\0surplus"
"""Key for fields without a column. No header can contain it."""


def read_prompts(path: Path, count: int) -> list[str]:
    """Return all prompts in the column `prompt` of a CSV file.

    If `prompt` is the only column, the whole line is the prompt, and commas need no quotes.

    Raises:
        InputError: the file is missing, empty, or not a CSV in UTF-8; it does not have exactly one column
            `prompt`; a line has more fields than the header; a prompt is empty; or there are fewer
            than `count`.
    """
    text = _read_text(path)
    # Strict, because an unclosed quote would otherwise swallow all following lines.
    reader = csv.DictReader(io.StringIO(text, newline=""), restkey=_SURPLUS, strict=True)
    try:
        columns = reader.fieldnames
        if not columns:
            raise InputError(f"{path} is empty; a header line with the column {COLUMN!r} belongs there")
        if COLUMN not in columns:
            found = ", ".join(map(repr, columns))
            raise InputError(
                f"{path} has no column {COLUMN!r}, it has {found}; rename the one that holds them"
            )
        if columns.count(COLUMN) > 1:
            raise InputError(f"{path} has the column {COLUMN!r} more than once; rename or delete all but one")
        prompts = [_prompt(row, columns, path, reader.line_num) for row in reader]
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.reader.line_num}: not a CSV ({error})") from None
    if not prompts:
        raise InputError(f"{path} has a header but no prompts; add one a line")
    if len(prompts) < count:
        raise InputError(
            f"{path} has {len(prompts)} prompts, {count} images need as many; "
            f"add prompts or use --num-images {len(prompts)}"
        )
    return prompts


def _read_text(path: Path) -> str:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"no prompt file at {path}; name one with --prompt-csv") from None
    except OSError as error:
        raise InputError(f"{path} can't be read: {error.strerror}; name another with --prompt-csv") from None
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        raise InputError(f"{path}, line {line}: not UTF-8; save the file as CSV in UTF-8") from None
    if "\0" in text.partition("\n")[0]:
        # UTF-16 without a byte order mark can pass as UTF-8, with a zero byte beside each letter.
        raise InputError(f"{path}, line 1: looks like UTF-16; save the file as CSV in UTF-8")
    return text


def _prompt(row: dict[str, Any], columns: Sequence[str], path: Path, line: int) -> str:
    surplus: list[str] = row.get(_SURPLUS, [])
    # Ignore commas at the end of a line: spreadsheets write them for emptied columns.
    if not any(field.strip() for field in surplus):
        return _checked(row[COLUMN], path, line)
    if len(columns) > 1:
        raise InputError(
            f"{path}, line {line}: {len(columns) + len(surplus)} fields, but the header has {len(columns)}; "
            'put quotes around a text with a comma, as "a cat, studio light"'
        )
    return _checked(",".join([row[COLUMN], *surplus]), path, line)


def _checked(prompt: str | None, path: Path, line: int) -> str:
    text = (prompt or "").strip()
    if not text:
        raise InputError(f"{path}, line {line}: an empty prompt; fill it in or delete the line")
    if len(text) > MAX_LENGTH:
        raise InputError(f"{path}, line {line}: {len(text)} characters; at most {MAX_LENGTH} are allowed")
    return text
