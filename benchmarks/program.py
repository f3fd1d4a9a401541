"""The command line of a benchmark whose rows run one after the other, each in a lab of its own."""

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from forebay.benchmarks.lab import Lab, lab
from forebay.benchmarks.report import Row, markdown, write

P = TypeVar("P")


def run_rows(
    description: str | None,
    rows: Mapping[str, Callable[[P, Lab], list[Row]]],
    make_plan: Callable[[int, float], P],
    *,
    title: str,
    name: str,
    runs: int = 5,
) -> None:
    """Parse the arguments and run the rows that they ask for. `make_plan(runs, scale)` is what each row is given.

    Results are printed and written after each row, in `benchmarks/out/<name>` unless `--out` says otherwise.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default=",".join(rows), help=f"comma-separated, of {', '.join(rows)}")
    parser.add_argument("--runs", type=int, default=runs, help=f"samples of each (default {runs})")
    parser.add_argument("--scale", type=float, default=1.0, help="fraction of every size (default 1)")
    parser.add_argument("--work", type=Path, default=None, help="folder for data and caches (default: temporary)")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("out") / name)
    arguments = parser.parse_args()
    plan = make_plan(arguments.runs, arguments.scale)
    measured: list[Row] = []
    for row in arguments.rows.split(","):
        with lab(arguments.work) as place:
            found = rows[row](plan, place)
        measured += found
        print(markdown(found, row), flush=True)
        write(measured, title, arguments.out)
    print(f"written to {arguments.out}")
