"""The page of a verification: its verdict, its tables, and pictures side by side."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass

from producer.proof.verdict import FLOOR_MARGIN_DB, Verdict
from producer.report.render import environment


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One prompt with its pictures."""

    prompt: str
    pictures: Sequence[bytes]
    """PNG by variant, the original first; empty where there is none."""


def render_proof(verdict: Verdict, names: Sequence[str], rows: Sequence[Row]) -> str:
    """Return the HTML, which needs no other files and no network.

    Args:
        verdict: may be of an incomplete verification.
        names: of the variants, the original first.
        rows: prompts whose pictures are shown.
    """
    pictures = [
        (
            row.prompt,
            [
                (name, base64.b64encode(png).decode())
                for name, png in zip(names, row.pictures, strict=True)
                if png
            ],
        )
        for row in rows
    ]
    template = environment().get_template("proof.html.j2")
    return template.render(
        verdict=verdict,
        pictures=pictures,
        winner=next(one for one in verdict.variants if one.name == verdict.winner),
        margin=FLOOR_MARGIN_DB,
        has_lpips=any(one.lpips for one in verdict.variants),
        predicted=[one for one in verdict.variants if one.predicted],
    )
