"""Charts as SVG text, whose colours are the page's: they follow its light and dark themes.

matplotlib is imported inside: it takes most of a second that no other command should wait for.
"""

import io
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from producer.report.averages import Averages

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_INK, _RULE = "#010101", "#020202"
_MARKERS = "os^DvPX"
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    # Ids are hashes of content and salt: without it they would be random, and the report never the same.
    "svg.hashsalt": "bitfleet",
    "font.size": 10,
    "text.color": _INK,
    "axes.edgecolor": _RULE,
    "axes.labelcolor": _INK,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "grid.color": _RULE,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
}


def averages_chart(depth: Averages, kinds: Averages, bits: Sequence[int]) -> str:
    """SVG of two panels: average relative error by depth and by kind, a line for each of `bits`."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(11.6, 7.2), layout="constrained", facecolor="none")
        panels = figure.subplots(2 if depth else 1, 1, squeeze=False)[:, 0]
        if depth:
            _lines(panels[0], depth, bits, "by depth", line="-")
        _lines(panels[-1], kinds, bits, "by kind of layer", line="none")
        panels[0].legend(ncols=len(bits), loc="lower right", bbox_to_anchor=(1, 1), frameon=False)
        buffer = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", metadata=nothing)
    return _themed(buffer.getvalue())


def viridis(count: int, first: float = 0.0, last: float = 1.0) -> list[str]:
    """`count` hex colours of the viridis map, which the colour-blind can read, from share first to last."""
    import matplotlib as mpl
    from matplotlib.colors import to_hex

    steps = max(count - 1, 1)
    return [to_hex(mpl.colormaps["viridis"](first + (last - first) * i / steps)) for i in range(count)]


def _lines(axes: "Axes", averages: Averages, bits: Sequence[int], title: str, *, line: str) -> None:
    labels = list(averages)
    for index, width in enumerate(bits):
        points = [(x, averages[label][width]) for x, label in enumerate(labels) if width in averages[label]]
        axes.plot(
            [x for x, _ in points],
            [100 * y for _, y in points],
            linestyle=line,
            marker=_MARKERS[index % len(_MARKERS)],
            color=_series(index),
            label=f"{width} bits",
        )
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}%")
    axes.grid(axis="y")
    axes.set_title(title, loc="left", fontweight="bold")
    axes.set_ylabel("relative error")
    # Some thirty labels fit; FLUX has 57 blocks.
    every = -(-len(labels) // 30)
    axes.set_xticks(range(0, len(labels), every), labels[::every], rotation=40, ha="right")
    axes.set_xlim(-0.5, len(labels) - 0.5)


def _series(index: int) -> str:
    return f"#0300{index:02x}"


def _themed(svg: str) -> str:
    """The <svg> element alone, with the placeholder colours replaced by the page's."""
    svg = svg[svg.index("<svg") :].replace(_INK, "currentColor").replace(_RULE, "var(--rule)")
    svg = re.sub(r"#0300([0-9a-f]{2})", lambda match: f"var(--series-{int(match[1], 16)})", svg)
    # Its style element would hold for the whole page; width and height are the page's to give.
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", svg, count=1, flags=re.DOTALL)
    return re.sub(r'\s(?:width|height)="[\d.]+pt"', "", svg, count=2)
