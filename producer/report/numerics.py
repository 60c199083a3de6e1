"""Warnings for the report if the machines that measured a run compute differently."""

import re
from collections.abc import Iterable, Mapping

from producer.results.results import HostTimings

TF32_ALLOWED = "allowed"


def numerics_warnings(hosts: Iterable[HostTimings]) -> list[str]:
    """Return one sentence for each difference that may change results; none if the hosts agree.

    Hosts that only drew images are left out. Older records do not name the device.
    """
    measured = [host for host in hosts if host.kind != "calibration"]
    warnings = []
    for what, part in (("versions of MLX", _mlx), ("families of chips", _family)):
        found: dict[str, set[str]] = {}
        for host in measured:
            for value in part(host.versions):
                found.setdefault(value, set()).add(host.host)
        if len(found) > 1:
            parts = "; ".join(f"{value} on {_names(found[value])}" for value in sorted(found))
            warnings.append(f"Measured with different {what}, which round differently: {parts}.")
    if fast := {host.host for host in measured if TF32_ALLOWED in _all(host.versions, "tf32")}:
        warnings.append(
            f"TF32 was allowed on {_names(fast)}: on chips that have it, float32 was multiplied with 10 bits "
            "of mantissa. Set MLX_ENABLE_TF32=0 there."
        )
    return warnings


def _mlx(versions: Mapping[str, str]) -> list[str]:
    return _all(versions, "mlx")


def _family(versions: Mapping[str, str]) -> list[str]:
    """Return the chips without the letter for their size: applegpu_g13s (M1 Max) becomes applegpu_g13."""
    return [re.sub(r"^(applegpu_g\d+)[a-z]$", r"\1", chip) for chip in _all(versions, "architecture")]


def _all(versions: Mapping[str, str], name: str) -> list[str]:
    """Return all versions that a host had during the run; see HostTimings.versions."""
    return versions[name].split(" and ") if versions.get(name) else []


def _names(hosts: set[str]) -> str:
    return ", ".join(sorted(hosts))
