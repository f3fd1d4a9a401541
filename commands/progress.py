"""Showing how far long work is: a bar on a terminal, a plain line every few seconds elsewhere, nothing with `--json`.

All of it on stderr, because stdout carries the answer. The worker says totals as it learns them; what it does not know
is left out rather than guessed.
"""

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import Protocol, TextIO

from .. import amounts

LINE_INTERVAL_S = 5.0


class Progress(Protocol):
    """Where a worker reports to. Cheap enough to be called for every object."""

    def update(
        self, *, done: int, total: int | None = None, done_bytes: int | None = None, total_bytes: int | None = None
    ) -> None:
        """So many things done (of `total` if known), and so many bytes; all counted from the start."""
        ...

    def say(self, text: str) -> None:
        """A line for the person, without disturbing the bar."""
        ...


@contextlib.contextmanager
def show(title: str, *, unit: str = "objects", quiet: bool = False, stream: TextIO | None = None) -> Iterator[Progress]:
    """A Progress for the time of a `with`; its last state is shown at the end."""
    out = stream or sys.stderr
    if quiet:
        yield _Silent()
    elif out.isatty():
        yield from _bar(title, unit, out)
    else:
        lines = _Lines(title, unit, out)
        yield lines
        lines.finish()


class _Silent:
    def update(
        self, *, done: int, total: int | None = None, done_bytes: int | None = None, total_bytes: int | None = None
    ) -> None:
        pass

    def say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)


class _Lines:
    """`prefetch s3://b: 1,200 of 20,000 objects, 132 MiB of 2.10 GiB, 56.1 MiB/s, 36 s left`."""

    def __init__(self, title: str, unit: str, out: TextIO) -> None:
        self._title, self._unit, self._out = title, unit, out
        self._started_s = self._shown_s = time.monotonic()
        self._state: tuple[int, int | None, int | None, int | None] | None = None

    def update(
        self, *, done: int, total: int | None = None, done_bytes: int | None = None, total_bytes: int | None = None
    ) -> None:
        self._state = (done, total, done_bytes, total_bytes)
        now_s = time.monotonic()
        if now_s - self._shown_s >= LINE_INTERVAL_S:
            self._shown_s = now_s
            self._show(now_s)

    def say(self, text: str) -> None:
        print(text, file=self._out, flush=True)

    def finish(self) -> None:
        if self._state is not None:
            self._show(time.monotonic(), ended=True)

    def _show(self, now_s: float, *, ended: bool = False) -> None:
        assert self._state is not None
        done, total, done_bytes, total_bytes = self._state
        elapsed_s = max(now_s - self._started_s, 0.001)
        parts = [
            amounts.format_count(done)
            + (f" of {amounts.format_count(total)}" if total is not None else "")
            + f" {self._unit}"
        ]
        if done_bytes is not None:
            of = f" of {amounts.format_size(total_bytes)}" if total_bytes is not None else ""
            parts += [amounts.format_size(done_bytes) + of, amounts.format_rate(done_bytes / elapsed_s)]
        else:
            parts.append(f"{amounts.format_count(done / elapsed_s)}/s")
        share = done_bytes / total_bytes if done_bytes and total_bytes else done / total if total else 0
        if ended:
            parts.append(f"in {amounts.format_duration(elapsed_s)}")
        elif 0 < share < 1:
            parts.append(f"{amounts.format_duration(elapsed_s * (1 - share) / share)} left")
        print(f"{self._title}: {', '.join(parts)}", file=self._out, flush=True)


def _bar(title: str, unit: str, out: TextIO) -> Iterator[Progress]:
    # rich takes 0.1 s to import: only when there is somebody to look at it.
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    console = Console(file=out)
    bars = RichProgress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TextColumn("{task.fields[numbers]}"),
        TimeRemainingColumn(),
        console=console,
    )

    class Bar:
        def __init__(self) -> None:
            self._started_s = time.monotonic()
            self._task = bars.add_task(title, total=None, numbers="")

        def update(
            self, *, done: int, total: int | None = None, done_bytes: int | None = None, total_bytes: int | None = None
        ) -> None:
            numbers = (
                amounts.format_count(done)
                + (f"/{amounts.format_count(total)}" if total is not None else "")
                + f" {unit}"
            )
            if done_bytes is not None:
                elapsed_s = max(time.monotonic() - self._started_s, 0.001)
                of = f"/{amounts.format_size(total_bytes)}" if total_bytes is not None else ""
                numbers += f"  {amounts.format_size(done_bytes)}{of}  {amounts.format_rate(done_bytes / elapsed_s)}"
            by_bytes = done_bytes is not None and bool(total_bytes)
            completed, whole = (done_bytes, total_bytes) if by_bytes else (done, total)
            bars.update(self._task, completed=completed, total=whole, numbers=numbers)

        def say(self, text: str) -> None:
            console.print(text, markup=False, highlight=False)

    with bars:
        yield Bar()
