"""Charts as SVG. The page's style sheet colours them by their ids, in its light and dark themes.

matplotlib is imported inside the functions: that takes most of a second, which other commands need not wait.
"""

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from producer.report.averages import Averages

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.ticker import Formatter

_MARKERS = "os^DvPX"
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    # Without a salt, the ids of shapes would be random and no two reports equal.
    "svg.hashsalt": "bitfleet",
    "font.size": 10,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.6,
    "lines.markersize": 5.5,
    # A marker's edge would keep matplotlib's colour: the style sheet reaches the inside only.
    "lines.markeredgewidth": 0,
}


def averages_chart(depth: Averages, kinds: Averages, bits: Sequence[int]) -> str:
    """Return an SVG of the average relative error by depth and by kind of layer, one line per bit width.

    The line of the i-th bit width has an id that begins with "series-i-", and the ids of the frame's lines
    begin with "rule-".
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(11.6, 7.2), layout="constrained", facecolor="none")
        panels = figure.subplots(2 if depth else 1, 1, squeeze=False)[:, 0]
        if depth:
            _lines(panels[0], depth, bits, "by depth", line="-")
        _lines(panels[-1], kinds, bits, "by kind of layer", line="none")
        legend = panels[0].legend(ncols=len(bits), loc="lower right", bbox_to_anchor=(1, 1), frameon=False)
        for index, handle in enumerate(legend.get_lines()):
            handle.set_gid(f"series-{index}-legend")
        buffer = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", metadata=nothing)
    svg = buffer.getvalue()
    return svg[svg.index("<svg") :]


def viridis(count: int, first: float = 0.0, last: float = 1.0) -> list[str]:
    """Return `count` hex colours of the viridis map, from position `first` to `last` (0 to 1).

    Colour-blind people can tell these colours apart.
    """
    import matplotlib as mpl
    from matplotlib.colors import to_hex

    gaps = max(count - 1, 1)
    return [to_hex(mpl.colormaps["viridis"](first + (last - first) * i / gaps)) for i in range(count)]


def _percent_labels() -> "Formatter":
    """Labels of a logarithmic axis, also between powers of ten where there is room, as "20%"."""
    from matplotlib.ticker import LogFormatter

    class PercentLabels(LogFormatter):
        def __call__(self, x: float, pos: int | None = None) -> str:
            return f"{x:g}%" if super().__call__(x, pos) else ""

    return PercentLabels(minor_thresholds=(1, 0.4))


def _lines(axes: "Axes", averages: Averages, bits: Sequence[int], title: str, *, line: str) -> None:
    panel = title.replace(" ", "-")
    labels = list(averages)
    for index, width in enumerate(bits):
        points = [(x, averages[label][width]) for x, label in enumerate(labels) if width in averages[label]]
        axes.plot(
            [x for x, _ in points],
            [100 * y for _, y in points],
            linestyle=line,
            marker=_MARKERS[index % len(_MARKERS)],
            label=f"{width} bits",
            gid=f"series-{index}-{panel}",
        )
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(_percent_labels())
    axes.yaxis.set_minor_formatter(_percent_labels())
    axes.grid(axis="y")
    axes.set_title(title, loc="left", fontweight="bold")
    axes.set_ylabel("relative error")
    # About thirty labels fit; FLUX has 57 blocks.
    every = -(-len(labels) // 30)
    axes.set_xticks(range(0, len(labels), every), labels[::every], rotation=40, ha="right")
    axes.set_xlim(-0.5, len(labels) - 0.5)
    for side, spine in axes.spines.items():
        spine.set_gid(f"rule-{side}-{panel}")
