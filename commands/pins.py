"""List the leases that hold cached data: who holds how much, and until when."""

import argparse
import time
from typing import Any

from .. import amounts, config
from . import frame, target


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", metavar="SOURCE|PATH", help=target.HELP)
    frame.add_json(parser)
    frame.add_settings(parser, "cache-dir", "cache-name", "ram-dir", "endpoint-url", "profile", "meta-url")


def run(args: argparse.Namespace, settings: config.Settings) -> int:
    found = target.find(args.target, settings)
    pins = pins_of(found, settings)
    if args.json:
        frame.emit_json({"source": found.source, "pins": pins})
    elif not pins:
        print(f"nothing of {found.source} is pinned")
    else:
        now_s = time.time()
        frame.emit_table(
            (
                (
                    pin["id"],
                    pin["owner"],
                    amounts.format_count(pin["objects"]),
                    amounts.format_size(pin["size_bytes"]),
                    amounts.format_duration(max(pin["expires_at"] - now_s, 0)),
                    pin["purpose"],
                )
                for pin in pins
            ),
            header=("LEASE", "OWNER", "OBJECTS", "SIZE", "ENDS IN", "WHAT"),
        )
    return 0


def pins_of(found: target.Target, settings: config.Settings) -> list[dict[str, Any]]:
    """The live pins of a source, from the process that holds it or from its folder."""
    if found.entry is not None:
        control = found.control()
        try:
            pins: list[dict[str, Any]] = control.get("pins")["pins"]
        finally:
            control.close()
        return pins
    from ..daemon import idle_cache, sources

    return idle_cache.pins(sources.name_of(found.text, settings), settings)
