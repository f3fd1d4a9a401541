"""Bring what a dead mount left behind into the bucket, without mounting: everything in the write tier of a source.

A mount of the same source does the same by itself when it comes back; this is for when it does not. Exit status is 0 when all is in
the bucket, 40 when the time-out came first, 24 when acked data is missing from the tier.
"""

import argparse
import asyncio

from .. import amounts, config
from ..errors import DirtyDataMissing
from . import flush, frame


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SOURCE", help="s3://bucket[/prefix], as it was mounted")
    parser.add_argument("--timeout", metavar="DURATION", help="give up after this long (default: never)")
    frame.add_json(parser, "answer as JSON, one line for each step")
    frame.add_settings(
        parser, "write-tier", "meta-url", "endpoint-url", "profile", "io-timeout", "max-connections", "on-conflict"
    )


def run(args: argparse.Namespace, settings: config.Settings) -> int:
    timeout_s = amounts.parse_duration_s(args.timeout) if args.timeout else None
    missing = asyncio.run(_recover(args, settings, timeout_s))
    if missing:
        raise DirtyDataMissing(
            f"acked data of {len(missing)} files is not in the write tier: {', '.join(missing[:3])}",
            remedy="restore the folder of the write tier",
        )
    return 0


async def _recover(args: argparse.Namespace, settings: config.Settings, timeout_s: float | None) -> list[str]:
    from ..daemon import write_part

    missing: list[str] = []
    async for line in write_part.recover(args.source, settings, timeout_s):
        if args.json:
            frame.emit_json(line)
        elif line["state"] == "recovered":
            found = f"{amounts.format_count(line['dirty_files'])} files ({amounts.format_size(line['dirty_bytes'])})"
            print(f"{args.source}: found {found}, {amounts.format_count(line['doomed'])} objects to delete")
        elif line["state"] == "running":
            frame.message(flush.left(line))
        else:
            print(f"{args.source}: all in the bucket")
        if line["state"] == "recovered":
            missing = line["missing"]
    return missing
