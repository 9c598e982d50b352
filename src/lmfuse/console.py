"""What a run shows while it works: one line a stage, a bar with tokens per second and time left where there is a terminal."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console as RichConsole
from rich.markup import escape
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text


class _Speed(ProgressColumn):
    def __init__(self, unit: str) -> None:
        super().__init__()
        self.unit = unit

    def render(self, task: Task) -> Text:
        return Text(f"{_speed(task.finished_speed or task.speed or 0)} {self.unit}/s", style="dim")


def _speed(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


class Console:
    """A thin layer over rich that also reads well in a log file."""

    def __init__(self) -> None:
        self.rich = RichConsole(stderr=True, highlight=False)

    def say(self, text: str, style: str = "") -> None:
        """Print one line; the text is shown as it is, whatever brackets it has."""
        self.rich.print(escape(text), style=style or None, soft_wrap=True)

    def warn(self, text: str) -> None:
        """Print one line that a reader should not miss."""
        self.say(f"note: {text}", style="yellow")

    def table(self, table: Table) -> None:
        """Print a table."""
        self.rich.print(table)

    @contextmanager
    def task(self, title: str, total: int, unit: str = "tokens") -> Iterator[Callable[[int], None]]:
        """Show work of ``total`` tokens, or of another unit; yields what the work calls with those just done."""
        started, done = time.monotonic(), 0
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%"),
            _Speed(unit),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self.rich, transient=True, disable=not self.rich.is_terminal) as progress:
            bar = progress.add_task(escape(title), total=total)

            def advance(more: int) -> None:
                nonlocal done
                done += more
                progress.advance(bar, more)

            yield advance
        seconds = time.monotonic() - started
        self.say(f"{title}: {done:,} {unit} in {seconds:.1f} s ({_speed(done / max(seconds, 1e-9))} {unit}/s)", style="dim")
