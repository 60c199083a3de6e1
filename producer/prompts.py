"""Read prompts: CSV, TSV, COCO captions or plain lines. A whole file is checked before any is enqueued."""

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from shared.decoding import decode
from shared.errors import InputError
from shared.models import model_spec

COLUMN = "prompt"
DEFAULT_FILE = Path("all_prompts.csv")
MAX_LENGTH = 10_000

_DEMO_FILE = Path(__file__).parent / "demo_prompts.csv"
_SURPLUS = "\0surplus"
"""Key for fields without a column. No header can contain it."""


def default_prompts(model: str) -> Path:
    """Return the prompt file of a model when none is named. Built-in models bring their own.

    Raises:
        InputError: there is no such model.
    """
    return _DEMO_FILE if model_spec(model).built_in else DEFAULT_FILE


def read_prompts(path: Path, count: int, column: str = COLUMN) -> list[str]:
    """Return all prompts of a file. The end of its name says how it is written.

    - `.txt`: one prompt a line.
    - `.json`: captions in COCO's format; the first caption of each picture counts.
    - `.tsv`: as `.csv`, with tabs.
    - all others: CSV with a header. If `column` is the only one, the whole line is the prompt, and commas
      need no quotes.

    Raises:
        InputError: the file is missing, empty, or not in UTF-8; it does not have exactly one such column;
            a line has more fields than the header; a prompt is empty or too long; or there are fewer than
            `count`.
    """
    text = _read_text(path)
    match path.suffix.lower():
        case ".txt":
            found = _lines(text, path)
        case ".json":
            found = _captions(text, path)
        case ".tsv":
            found = _rows(text, path, column, "\t")
        case _:
            found = _rows(text, path, column, ",")
    prompts = list(found)
    if not prompts:
        raise InputError(f"{path} holds no prompts; add one a line")
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
        raise InputError(f"{path}, line {line}: not UTF-8; save the file in UTF-8") from None
    if "\0" in text.partition("\n")[0]:
        # UTF-16 without a byte order mark can pass as UTF-8, with a zero byte beside each letter.
        raise InputError(f"{path}, line 1: looks like UTF-16; save the file in UTF-8")
    return text


def _lines(text: str, path: Path) -> Iterator[str]:
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            yield _checked(line, path, number)


class _Caption(Struct):
    image_id: int
    caption: str


class _Captions(Struct):
    """The parts of COCO's captions_*.json that are used here."""

    annotations: list[_Caption]


_captions_decoder = msgspec.json.Decoder(_Captions)


def _captions(text: str, path: Path) -> Iterator[str]:
    captions = decode(_captions_decoder, text, InputError, f"{path} holds no captions in COCO's format")
    seen: set[int] = set()
    for number, entry in enumerate(captions.annotations, start=1):
        if entry.image_id not in seen:
            seen.add(entry.image_id)
            yield _checked(entry.caption, path, number, "annotation")


def _rows(text: str, path: Path, column: str, delimiter: str) -> Iterator[str]:
    # Strict, because an unclosed quote would otherwise swallow all following lines. In a TSV a quote at the
    # start of a field may be part of the prompt: such files are written without quoting.
    reader = csv.DictReader(
        io.StringIO(text, newline=""),
        restkey=_SURPLUS,
        strict=True,
        delimiter=delimiter,
        quoting=csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL,
    )
    try:
        columns = reader.fieldnames
        if not columns:
            raise InputError(f"{path} is empty; a header line with the column {column!r} belongs there")
        if column not in columns:
            found = ", ".join(map(repr, columns))
            raise InputError(
                f"{path} has no column {column!r}, it has {found}; "
                "name the one that holds the prompts with --prompt-column"
            )
        if columns.count(column) > 1:
            raise InputError(f"{path} has the column {column!r} more than once; rename or delete all but one")
        for row in reader:
            yield _prompt(row, columns, column, path, reader.line_num)
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.reader.line_num}: not a CSV ({error})") from None


def _prompt(row: dict[str, Any], columns: Sequence[str], column: str, path: Path, line: int) -> str:
    surplus: list[str] = row.get(_SURPLUS, [])
    # Ignore commas at the end of a line: spreadsheets write them for emptied columns.
    if not any(field.strip() for field in surplus):
        return _checked(_unquoted(row[column]) if path.suffix == ".tsv" else row[column], path, line)
    if len(columns) > 1:
        raise InputError(
            f"{path}, line {line}: {len(columns) + len(surplus)} fields, but the header has {len(columns)}; "
            'put quotes around a text with a comma, as "a cat, studio light"'
        )
    return _checked(",".join([row[column], *surplus]), path, line)


def _unquoted(field: str | None) -> str | None:
    """Return a field of a TSV without the quotes that spreadsheets put around it."""
    if field and len(field) > 1 and field[0] == field[-1] == '"' and '"' not in field[1:-1].replace('""', ""):
        return field[1:-1].replace('""', '"')
    return field


def _checked(prompt: str | None, path: Path, number: int, unit: str = "line") -> str:
    text = (prompt or "").strip()
    if not text:
        raise InputError(f"{path}, {unit} {number}: an empty prompt; fill it in or delete the {unit}")
    if len(text) > MAX_LENGTH:
        raise InputError(f"{path}, {unit} {number}: {len(text)} characters; at most {MAX_LENGTH} are allowed")
    return text
