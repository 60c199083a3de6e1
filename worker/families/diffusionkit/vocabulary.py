"""The small models' own vocabulary: CLIP's byte-pair format over the words of their prompts."""

from collections import Counter
from itertools import pairwise

WORDS = tuple(
    "a above an and at background below black blue bottom centre circle cross green grey in large left"  # noqa: SIM905
    " middle of on orange purple red right small square star the to top triangle white yellow".split()
)
"""Each is one token; everything else is spelt, letter by letter where need be."""

BEGIN = "<|startoftext|>"
END = "<|endoftext|>"

_SYMBOLS = [chr(code) for code in (*range(0x21, 0x7F), *range(0xA1, 0x180))]

Merge = tuple[str, str]


def byte_pair_merges(words: tuple[str, ...] = WORDS) -> list[Merge]:
    """Merges that make each word one token (Sennrich et al. 2016, https://arxiv.org/abs/1508.07909).

    Ties go to the alphabetically first pair, so that every machine finds the same.
    """
    spelt = [[*word[:-1], word[-1] + "</w>"] for word in words]
    merges: list[Merge] = []
    while pairs := Counter(pair for word in spelt for pair in pairwise(word)):
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        spelt = [_merged(word, best) for word in spelt]
    return merges


def _merged(word: list[str], pair: Merge) -> list[str]:
    merged: list[str] = []
    for symbol in word:
        if merged and (merged[-1], symbol) == pair:
            merged[-1] += symbol
        else:
            merged.append(symbol)
    return merged


def vocabulary(merges: list[Merge]) -> dict[str, int]:
    """Token ids. The end token is the highest: CLIP pools where the largest id stands."""
    tokens = [*_SYMBOLS, *(f"{symbol}</w>" for symbol in _SYMBOLS), *("".join(pair) for pair in merges)]
    return {token: index for index, token in enumerate(dict.fromkeys([*tokens, BEGIN, END]))}
