"""Wait until what was written is in the bucket, verified: everything of a mount, or one file or folder in it.

Exit status is 0 when it is, and 40 when the time-out came first; the message then says what is left and why.
"""

import argparse
import sys
from collections.abc import Mapping
from typing import Any

from .. import amounts, config
from . import frame, target


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "targets", nargs="*", metavar="PATH|SOURCE", help="a path inside a mount, or a source; default: ."
    )
    parser.add_argument("--timeout", metavar="DURATION", help="give up after this long (default: never)")
    frame.add_json(parser, "answer as JSON, one line for each step")
    frame.add_settings(parser, "cache-dir", "cache-name", "endpoint-url", "profile")


def run(args: argparse.Namespace, settings: config.Settings) -> int:
    timeout_s = amounts.parse_duration_s(args.timeout) if args.timeout else None
    for text in args.targets or ["."]:
        found = target.find(text, settings)
        wait(found.control(), found.path, timeout_s, as_json=args.json)
        if not args.json:
            print(f"{text}: all in the bucket")
    return 0


def wait(control: Any, path: str, timeout_s: float | None, *, as_json: bool) -> None:
    """Wait with a line of progress now and then. Raises Incomplete at the time-out."""
    try:
        for line in control.stream("flush", {"path": path, "timeout_s": timeout_s}):
            if as_json:
                frame.emit_json(line)
            elif line["state"] == "running" and sys.stderr.isatty():
                frame.message(left(line))
    finally:
        control.close()


def left(status: Mapping[str, Any]) -> str:
    text = f"{amounts.format_count(status['dirty_files'])} files ({amounts.format_size(status['dirty_bytes'])}) to go"
    if status["doomed"]:
        text += f", {amounts.format_count(status['doomed'])} objects to delete"
    if status["paused"]:
        text += f"; waiting: {status['paused']}"
    return text
