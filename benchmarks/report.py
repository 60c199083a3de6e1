"""What a benchmark found: facts, and figures held against their targets; as a table and as JSON."""

import json
import os
import platform
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import mlx.core as mx

from worker.service.blas import find_fast_blas


@dataclass(slots=True)
class Report:
    """One benchmark."""

    title: str
    facts: dict[str, Any] = field(default_factory=dict)
    figures: list[dict[str, Any]] = field(default_factory=list)

    def at_least(self, name: str, value: float, target: float) -> None:
        """A figure that ought to be `target` or more."""
        self.figures.append(
            {"name": name, "value": value, "target": f">= {target:g}", "met": value >= target}
        )

    def at_most(self, name: str, value: float, target: float) -> None:
        """A figure that ought to be `target` or less."""
        self.figures.append(
            {"name": name, "value": value, "target": f"<= {target:g}", "met": value <= target}
        )


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "system": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "python": platform.python_version(),
        "mlx": mx.__version__,
        "device": str(mx.default_device()),
        "blas": str(find_fast_blas() or "MLX's own"),
        "preloaded": os.environ.get("LD_PRELOAD", ""),
    }


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if sys.platform == "linux" else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def print_report(report: Report) -> None:
    """Table, then one line of JSON."""
    click.echo(f"\n{report.title}")
    for name, value in report.facts.items():
        click.echo(f"  {name:<52} {_shown(value)}")
    for figure in report.figures:
        mark = "met" if figure["met"] else "MISSED"
        click.echo(f"  {figure['name']:<52} {_shown(figure['value']):<12} {figure['target']:<10} {mark}")
    found = {"title": report.title, "facts": report.facts, "figures": report.figures, "machine": machine()}
    click.echo(json.dumps(found))


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
