"""End leases before their time: what they held may be evicted again. Name lease ids (see `forebay pins`), or an owner."""

import argparse

from .. import config
from ..errors import UsageError
from . import frame, target


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", metavar="SOURCE|PATH", help=target.HELP)
    parser.add_argument("ids", nargs="*", metavar="LEASE", help="ids of leases")
    parser.add_argument("--owner", help="all leases of this owner")
    frame.add_json(parser)
    frame.add_settings(parser, "cache-dir", "cache-name", "ram-dir", "endpoint-url", "profile", "meta-url")


def run(args: argparse.Namespace, settings: config.Settings) -> int:
    if not args.ids and args.owner is None:
        raise UsageError("neither a lease nor an owner is named", remedy="`forebay pins` lists them")
    found = target.find(args.target, settings)
    if found.entry is not None:
        control = found.control()
        removed: list[str] = control.post("unpin", {"ids": args.ids, "owner": args.owner})["removed"]
        control.close()
    else:
        from ..daemon import idle_cache, sources

        removed = idle_cache.unpin(sources.name_of(found.text, settings), settings, args.ids, args.owner)
    unknown = sorted(set(args.ids) - set(removed))
    if args.json:
        frame.emit_json({"source": found.source, "removed": removed, "unknown": unknown})
    else:
        print(f"{len(removed)} leases ended")
    if unknown:
        raise UsageError(f"there is no lease {', '.join(unknown)}", remedy="`forebay pins` lists them")
    return 0
