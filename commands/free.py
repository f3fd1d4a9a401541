"""Let go of cached data before it would be evicted: of a source, or of paths inside a mount. The bucket is not touched.

What a lease holds stays, unless --also-pinned. When a whole source that nobody uses is freed, its cache folders go too.
"""

import argparse
from typing import Any

from .. import amounts, config
from . import frame, target


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("targets", nargs="+", metavar="SOURCE|PATH", help=target.HELP)
    parser.add_argument("--also-pinned", action="store_true", help="also what a lease holds")
    frame.add_json(parser, "answer as JSON, one line for each")
    frame.add_settings(parser, "cache-dir", "cache-name", "ram-dir", "endpoint-url", "profile", "meta-url")


def run(args: argparse.Namespace, settings: config.Settings) -> int:
    for text in args.targets:
        found = target.find(text, settings)
        if found.entry is not None:
            control = found.control()
            answer = control.post(
                "free", {"paths": [found.path], "also_pinned": args.also_pinned, "source": found.source}
            )
            control.close()
        else:
            answer = _remove_folders(text, settings, also_pinned=args.also_pinned)
        if args.json:
            frame.emit_json(answer)
        else:
            pinned = answer["pinned_objects"]
            held = f"; {amounts.format_count(pinned)} objects are pinned and stay (`forebay pins`)" if pinned else ""
            print(f"{text}: {amounts.format_size(answer['freed_bytes'])} freed{held}")
    return 0


def _remove_folders(text: str, settings: config.Settings, *, also_pinned: bool) -> dict[str, Any]:
    from ..daemon import idle_cache, sources

    name = sources.name_of(text, settings)
    return idle_cache.free(name, settings, also_pinned=also_pinned)
