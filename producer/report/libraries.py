"""The libraries that the report embeds: their text comes from installed packages, their licences with it.

They are read as files: importing the packages would run code of theirs, which is for other frameworks.
"""

from dataclasses import dataclass
from functools import cache
from importlib.metadata import distribution
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Library:
    """What a page embeds of one package."""

    name: str
    version: str
    """Of the package."""
    licence: str
    script: str
    style: str = ""


@cache
def charts() -> Library:
    """Return Vega, Vega-Lite and Vega-Embed, which draw the charts. The script defines `vegaEmbed`."""
    package = "django-js-lib-vega-embed"
    return Library(
        name="Vega, Vega-Lite and Vega-Embed",
        version=distribution(package).version,
        licence=_text(package, "LICENSE"),
        script=_text(package, "vega-embed-full.js"),
    )


@cache
def tables() -> Library:
    """Return DataTables with jQuery, which sort, search and filter tables. The script is a module."""
    package = "itables"
    return Library(
        name="DataTables and jQuery, as bundled by ITables",
        version=distribution(package).version,
        licence=_text(package, "LICENSE"),
        script=_text(package, "html/dt_bundle.js"),
    )


def _text(package: str, end: str) -> str:
    """Return the text of the package's file whose path ends so."""
    files = distribution(package).files or []
    path = next(file for file in files if file.as_posix().endswith(f"/{end}"))
    return Path(str(path.locate())).read_text(encoding="utf-8")
