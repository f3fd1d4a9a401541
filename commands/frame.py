"""What every command shares: flags made from the table of settings, JSON and tables on stdout, errors on stderr.

stdout carries the answer and nothing else; with `--json` it is one JSON document, or one per line where a command
says so. Whatever is meant for a person beside the answer goes to stderr.
"""

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from .. import config
from ..errors import ForebayError

_DEST = "setting:"


def add_settings(parser: argparse.ArgumentParser, *names: str) -> None:
    """Add the flags of the named settings to a command. Truth values are `--name` and `--no-name`."""
    group = parser.add_argument_group("settings")
    for name in names:
        row = config.TABLE[name]
        help_text = f"{row.help} (default: {row.default_text})".replace("%", "%%")
        dest = _DEST + name
        if row.kind is config.BOOLEAN:
            group.add_argument(
                row.flag, dest=dest, action="store_const", const="true", help=row.help.replace("%", "%%")
            )
            group.add_argument(f"--no-{name}", dest=dest, action="store_const", const="false", help=argparse.SUPPRESS)
        else:
            bare: dict[str, Any] = {} if row.bare is None else {"nargs": "?", "const": row.bare}
            metavar = "{" + ",".join(row.kind.choices) + "}" if row.kind.choices else row.kind.name
            group.add_argument(row.flag, dest=dest, metavar=metavar, help=help_text, **bare)


def given_settings(args: argparse.Namespace) -> dict[str, str]:
    """The settings that were given as flags: name -> text."""
    return {
        dest.removeprefix(_DEST): text
        for dest, text in vars(args).items()
        if dest.startswith(_DEST) and text is not None
    }


def add_json(parser: argparse.ArgumentParser, what: str = "answer as one JSON document") -> None:
    parser.add_argument("--json", action="store_true", help=what)


class _Answer:
    """Whether this command has already given an answer in JSON; `cli.main` begins each command without one."""

    given = False


def begin() -> None:
    """A command begins: nothing is answered yet."""
    _Answer.given = False


def emit_json(document: Any) -> None:
    """One JSON document on one line of stdout, at once."""
    _Answer.given = True
    sys.stdout.write(json.dumps(document, ensure_ascii=False, default=str) + "\n")
    sys.stdout.flush()


def emit_table(rows: Iterable[Sequence[str]], *, header: Sequence[str] | None = None) -> None:
    """Left-aligned columns on stdout; no frame, so that `awk` and eyes both read it."""
    lines = [list(header)] if header else []
    lines += [list(row) for row in rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)] if lines else []
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def message(text: str) -> None:
    """One line for the person at the terminal."""
    print(text, file=sys.stderr, flush=True)


def report(error: ForebayError, *, as_json: bool) -> None:
    """Say what failed: a sentence on stderr, and with `as_json` an object on stdout, unless an answer is there already (a
    receipt that says what is missing): then the exit status is all that is added to it."""
    message(f"forebay: {error}")
    if as_json and not _Answer.given:
        emit_json(
            {
                "error": {
                    "kind": error.kind,
                    "message": error.message,
                    "remedy": error.remedy,
                    "exit_code": error.exit_code,
                }
            }
        )
