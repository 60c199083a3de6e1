"""Text that others wrote, for a terminal: the one door. A terminal obeys what it is shown."""

MAX_TEXT = 2000


def printable(text: str, limit: int = MAX_TEXT) -> str:
    """Return `text` in one line, without characters that move the cursor or hide what follows.

    Line breaks and tabs become spaces, everything else that can't be printed becomes its escape. Of a text
    that is longer than `limit` characters the beginning is kept.
    """
    if len(text) > limit:
        text = f"{text[:limit]} …"
    return "".join(_shown(letter) for letter in text)


def _shown(letter: str) -> str:
    if letter.isprintable():
        return letter
    return " " if letter in "\n\r\t\v\f\x1c\x1d\x1e\x85\u2028\u2029" else ascii(letter)[1:-1]
