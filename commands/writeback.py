"""Look at what was written and is not in the bucket yet, or have it tried again at once.

forebay writeback list [PATH]     files oldest first, with the reason if one does not get through
forebay writeback retry [PATH]    do not wait for the next try after a failure
"""

import argparse

from .. import amounts, config
from . import flush, frame, target

LIMIT = 1000


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=("list", "retry"))
    parser.add_argument(
        "target", nargs="?", default=".", metavar="PATH|SOURCE", help="a mount; default: the one around ."
    )
    frame.add_json(parser)
    frame.add_settings(parser, "cache-dir", "cache-name", "endpoint-url", "profile")


def run(args: argparse.Namespace, settings: config.Settings) -> int:
    control = target.find(args.target, settings).control()
    try:
        if args.action == "retry":
            answer = control.post("writeback/retry")
        else:
            answer = control.get("writeback", limit=LIMIT)
    finally:
        control.close()
    if args.json:
        frame.emit_json(answer)
        return 0
    if args.action == "retry":
        print("what waited is tried again")
        return 0
    rows = [
        (
            one["path"],
            one["state"],
            amounts.format_size(one["size_bytes"]),
            amounts.format_duration(round(one["dirty_for_s"], 1)),
            one["failure"] or (f"{amounts.format_size(one['sent_bytes'])} sent" if one["sent_bytes"] else ""),
        )
        for one in answer["files"]
    ]
    if rows:
        frame.emit_table(rows, header=("path", "state", "size", "waits for", ""))
    shown = f", the oldest {len(rows)} are shown" if answer["total"] > len(rows) else ""
    print((flush.left(answer) + shown) if answer["total"] or answer["doomed"] else "all is in the bucket")
    return 0
