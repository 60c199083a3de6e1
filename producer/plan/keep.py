"""What a user wants for some layers: `--keep GLOB=8` and its like."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import msgspec

from shared.choices import BITS
from shared.errors import InputError
from shared.plan import Choice

FULL = 16
"""As a number of bits: the weight as it is."""
WAYS = "=8 (at least 8 bits), =4/64 (exactly 4 bits in groups of 64) or =keep (as it is)"


@dataclass(frozen=True, slots=True, kw_only=True)
class KeepRule:
    """One --keep option."""

    text: str
    """As it was given."""
    pattern: str
    allows: Callable[[Choice | None], bool]
    """Whether a choice is allowed. None leaves a layer as it is: more than any number of bits."""

    def matches(self, path: str) -> bool:
        """Return whether the rule speaks of a layer."""
        return fnmatchcase(path, self.pattern)


def parse_keep(text: str) -> KeepRule:
    """Return the rule of one option.

    Raises:
        InputError: this is no rule.
    """
    pattern, equals, wish = text.rpartition("=")
    if not equals or not pattern.strip():
        raise InputError(f"--keep {text!r} says not how; write a pattern of dotted paths, then {WAYS}")
    return KeepRule(text=text, pattern=pattern.strip(), allows=_allows(wish.strip(), text))


def parse_choice(text: str) -> Choice:
    """Return the choice that is written as 4/64.

    Raises:
        InputError: this is no choice that MLX offers.
    """
    try:
        bits, group_size = map(int, text.split("/"))
        if bits not in BITS:
            raise ValueError(bits)
        return msgspec.convert({"bits": bits, "group_size": group_size}, Choice)
    except ValueError:  # of which msgspec.ValidationError is one
        raise InputError(
            f"{text!r} is no choice; write bits/group size, as 4/64: bits 1, 2, 3, 4, 5, 6 or 8 in groups of "
            "32, 64 or 128"
        ) from None


def _allows(wish: str, text: str) -> Callable[[Choice | None], bool]:
    if wish in ("keep", str(FULL)):
        return lambda choice: choice is None
    if "/" in wish:
        exact = parse_choice(wish)
        return lambda choice: choice == exact
    if not wish.isdecimal() or int(wish) > max(BITS):
        raise InputError(f"--keep {text!r}: {wish!r} is no number of bits; write {WAYS}")
    floor = int(wish)
    return lambda choice: choice is None or choice.bits >= floor


def check_matches(rules: Sequence[KeepRule], paths: Sequence[str]) -> None:
    """Check that each rule speaks of a layer.

    Raises:
        InputError: one does not.
    """
    for rule in rules:
        if not any(rule.matches(path) for path in paths):
            raise InputError(
                f"--keep {rule.text!r} matches no layer; layers are named like {paths[-1]!r}, * stands for "
                "anything"
            )
