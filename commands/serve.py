"""Hold the cache of a source without mounting it, for programs that read through `forebay://` URLs and for prefetching.

Such a process is started by itself when a program needs it, so this command is rarely typed. It ends when nobody has
asked for anything for `idle-timeout`, and makes room when the same source is mounted.
"""

import argparse
from typing import Any

from .. import config
from . import frame
from .mount import SETTINGS

_OF_MOUNTS = {"read-only", "allow-other", "uid", "gid", "umask", "nonempty", "transport"}


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SOURCE", help="s3://bucket[/prefix], file:///dir, dataset@ref, ...")
    frame.add_json(parser)
    frame.add_settings(parser, *(name for name in SETTINGS if name not in _OF_MOUNTS), "idle-timeout")


def run(args: argparse.Namespace, settings: config.Settings) -> int:
    from ..daemon import starting

    def ready(served: dict[str, Any]) -> None:
        if args.json:
            frame.emit_json(served)
        else:
            frame.message(f"the cache of {served['source']} is served by process {served['pid']}")

    starting.start(args.source, None, settings, ready=ready)
    return 0
