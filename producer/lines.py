"""What commands say, in lines. Rich is not imported here, so that commands without tables answer at once."""

from typing import TYPE_CHECKING

import click

from shared.cli import is_quiet
from shared.printable import printable_lines

if TYPE_CHECKING:
    from rich.console import Console


class Lines:
    """Prints text as it is written; a terminal obeys nothing in it."""

    def __init__(self, *, stderr: bool = False) -> None:
        self._stderr = stderr
        self.console: Console | None = None
        """Where bars are shown now: lines belong above them."""

    def print(self, text: str = "") -> None:
        """Print what there is to say beside results, warnings and errors: nothing with --quiet."""
        if not is_quiet():
            self.show(text)

    def show(self, text: str = "") -> None:
        """Print a result that was asked for, a warning or an error."""
        if self.console is not None:
            self.console.print(text)
        else:
            click.echo(printable_lines(text), err=self._stderr)


out = Lines()
err = Lines(stderr=True)
