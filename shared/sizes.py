"""Sizes in bytes, as people write them."""

import humanfriendly

from shared.errors import InputError


def parse_size(text: str) -> int:
    """Return the bytes of "12GB", "800 MB" or "1.5GiB".

    Raises:
        InputError: `text` is not a size.
    """
    try:
        return int(humanfriendly.parse_size(text))
    except humanfriendly.InvalidSize:
        raise InputError(f"{text!r} is no size; write it as 12GB, 800MB or 1.5GiB") from None
