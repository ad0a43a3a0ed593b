"""What the terminal sees: data on stdout, talk on stderr, plain where nobody looks at it."""

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

_BAR_WIDTH = 16


def talk(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def note(message: str) -> None:
    talk(f"note: {message}")


def error(message: str) -> None:
    """One line per problem; a message of several lines is several problems."""
    for line in message.splitlines() or ["failed without a message"]:
        talk(f"{_paint('error:', '1;31')} {line}")


def _paint(text: str, ansi: str) -> str:
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" or not sys.stderr.isatty()
    return text if plain else f"\033[{ansi}m{text}\033[0m"


def data(value: Any) -> None:
    """`value` as JSON on stdout."""
    print(json.dumps(value, indent=2, ensure_ascii=False), flush=True)


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Aligned columns on stdout; nothing is cut off or wrapped, so that it can be grepped."""
    lines = [[str(cell) for cell in row] for row in (header, *rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def size(n_bytes: float) -> str:
    """Decimal units, as macOS and the hub count them: 2.6 GB."""
    for unit in ("B", "kB", "MB"):
        if n_bytes < 999.5:
            return f"{n_bytes:.0f} {unit}" if n_bytes >= 99.5 or unit == "B" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.1f} GB"


@contextmanager
def progress(line: str) -> Iterator[Callable[..., None]]:
    """A bar on stderr, for a terminal only; yields `show(completed=…, total=…, **fields)`.

    `line` is a format of rich's, such as `{task.completed} {task.fields[name]}`. The bar appears at the first `show`,
    goes when the block is left, and without a `total` moves to and fro.
    """
    if not sys.stderr.isatty():
        yield lambda **_: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn
    from rich.table import Column

    stderr = Console(stderr=True)
    # Cut off at the terminal's edge, not wrapped, and not at the cost of the bar.
    column = Column(no_wrap=True, max_width=max(20, stderr.width - _BAR_WIDTH - 8))
    text = TextColumn(line, markup=False, table_column=column)
    bar = Progress(SpinnerColumn(), BarColumn(_BAR_WIDTH), text, console=stderr, transient=True)
    task: TaskID | None = None

    def show(**fields: Any) -> None:
        nonlocal task
        if task is None:
            task = bar.add_task("", total=None)
            bar.update(task, **fields)
            bar.start()  # only now that every field of the line is there
        else:
            bar.update(task, **fields)

    try:
        yield show
    finally:
        bar.stop()
