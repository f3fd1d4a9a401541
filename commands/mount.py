"""Mount a bucket, a folder or a dataset version as a plain folder.

Returns when the mount serves, or fails with the reason. The process behind it stays in the background until
`forebay umount`; with --foreground it stays here, logs to stderr, and ends with Ctrl-C.

A bucket (s3://) is mounted writable: files are safe in the write tier when close returns, and in the bucket soon after
(`forebay flush` waits for that). --read-only refuses all writing, and opens files faster.

examples:
  forebay mount s3://bucket/images /mnt/images
  forebay mount s3://bucket /mnt/b --endpoint-url http://minio:9000 --cache-dir /nvme0/fb:/nvme1/fb --cache-size 800GiB
  forebay mount pets@v7 /mnt/pets --by-label class
"""

import argparse
from typing import Any

from .. import config
from . import frame

SETTINGS = (
    "read-only", "cache-dir", "cache-name", "cache-size", "ram-dir", "ram-size", "free-space-ratio", "eviction",
    "eviction-ttl", "metadata-ttl", "endpoint-url", "profile", "anonymous", "io-timeout", "max-connections", "allow-other", "uid",
    "gid", "umask", "nonempty", "transport", "by-label", "write-tier", "write-mode", "writeback-delay", "max-dirty-age",
    "max-dirty-size", "dirty-wait", "write-cache-size", "on-conflict", "foreground", "log-level", "log-format", "log-file",
    "metrics-port", "metrics-address", "meta-url",
)  # fmt: skip


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SOURCE", help="s3://bucket[/prefix], file:///dir, dataset@ref, ...")
    parser.add_argument("mountpoint", metavar="MOUNTPOINT", help="an empty folder")
    frame.add_json(parser)
    frame.add_settings(parser, *SETTINGS)


def run(args: argparse.Namespace, settings: config.Settings) -> int:
    from ..daemon import starting

    def ready(served: dict[str, Any]) -> None:
        if args.json:
            frame.emit_json(served)
            return
        for note in served["notes"]:
            frame.message(f"note: {note}")
        frame.message(f"{served['source']} is mounted at {served['mountpoint']}")

    starting.start(args.source, args.mountpoint, settings, ready=ready)
    return 0
