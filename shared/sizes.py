"""Sizes in bytes, as people write them."""

import re

from shared.errors import InputError

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(I?)B?", re.IGNORECASE)


def parse_size(text: str) -> int:
    """Bytes of "12GB", "800 MB" or "1.5GiB".

    Raises:
        InputError: no size.
    """
    match = _SIZE.fullmatch(text.strip())
    if not match:
        raise InputError(f"{text!r} is no size; write it as 12GB, 800MB or 1.5GiB")
    number, unit, binary = match.groups()
    power = "KMGT".index(unit.upper()) + 1 if unit else 0
    return int(float(number) * (1024**power if binary else _UNITS[unit.upper()]))


def format_size(size: int) -> str:
    """Bytes, with the unit that fits."""
    value = float(size)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"
