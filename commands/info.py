"""Tell about a path inside a mount: which object version it is, how much of it is cached in which tier, what pins it.

For a folder, the sums over the files below it.
"""

import argparse
import datetime
from collections.abc import Mapping
from typing import Any

from .. import amounts, config
from . import frame, target


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("paths", nargs="+", metavar="PATH|SOURCE", help=target.HELP)
    frame.add_json(parser, "answer as JSON, one line for each path")
    frame.add_settings(parser, "cache-dir", "cache-name", "endpoint-url", "profile", "meta-url")


def run(args: argparse.Namespace, settings: config.Settings) -> int:
    for text in args.paths:
        found = target.find(text, settings)
        control = found.control()
        try:
            answer = control.get("info", path=found.path, source=found.source)
        finally:
            control.close()
        answer = {"source": found.source, **answer}
        if args.json:
            frame.emit_json(answer)
        else:
            print(f"{text}\n" + "\n".join(f"  {name:<11} {value}" for name, value in _lines(answer)))
    return 0


def _lines(answer: Mapping[str, Any]) -> list[tuple[str, str]]:
    size = answer["size_bytes"]
    if answer["kind"] == "written":
        return _written(answer)
    if answer["kind"] == "folder":
        return [
            ("files", amounts.format_count(answer["files"])),
            ("size", amounts.format_size(size)),
            ("cached", _share(answer["cached_bytes"], size)),
            ("in ram", amounts.format_size(answer["ram_bytes"])),
            ("on ssd", amounts.format_size(answer["ssd_bytes"])),
            ("pinned", f"{amounts.format_count(answer['pinned_files'])} files"),
        ]
    version, cached = answer["version"], answer["cached"]
    changed = datetime.datetime.fromtimestamp(answer["mtime_s"], datetime.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    lines = [
        ("store", version["store"]),
        ("key", version["key"]),
        ("version", version["etag"] + (f", id {version['version_id']}" if version["version_id"] else "")),
        ("size", f"{amounts.format_size(size)} ({size} bytes), changed {changed}"),
        ("cached", _share(cached["cached_bytes"], size)),
        ("in ram", f"{cached['ram_blocks']} of {answer['blocks']} blocks, {amounts.format_size(cached['ram_bytes'])}"),
        ("on ssd", f"{cached['ssd_blocks']} of {answer['blocks']} blocks, {amounts.format_size(cached['ssd_bytes'])}"),
        ("pins", str(answer["pins"])),
    ]
    return lines + [(name.removeprefix("user.forebay."), value) for name, value in answer["attributes"].items()]


def _share(part: int, whole: int) -> str:
    return f"{amounts.format_size(part)} of {amounts.format_size(whole)} ({part / whole if whole else 1:.0%})"


def _written(answer: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Where a file that was written through the mount is durable."""
    lines = [
        ("state", answer["state"]),
        ("key", answer["key"] + (f", version {answer['etag']}" if answer["etag"] else ", not in the bucket yet")),
        ("size", f"{amounts.format_size(answer['size_bytes'])} ({answer['size_bytes']} bytes)"),
    ]
    if answer["stored_bytes"]:
        lines.append(("durable in", f"{answer['stored_in']}, {amounts.format_size(answer['stored_bytes'])}"))
    if answer["dirty_for_s"]:
        lines.append(("waits for", amounts.format_duration(round(answer["dirty_for_s"], 1))))
    if answer["failure"]:
        lines.append(("failure", answer["failure"]))
    return lines
