"""`forebay snapshot list|log|show|ls|diff|stats|export`: looking at versions."""

import argparse
import contextlib
import datetime
import gzip
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import lz4.frame

from .. import amounts, config
from ..errors import UsageError
from ..snapshots import DiffSummary, Entry, FolderEntry, Selection, Snapshot, entries_of
from ..snapshots.archive_record import archive_of
from . import frame, progress
from .actions import (
    Action,
    commit_document,
    percentage,
    refs_by_commit,
    repository_of,
    snapshot_document,
    when,
)
from .snapshot_graph import draw

CHANGE_MARKS = {"added": "+", "removed": "-", "content": "~", "labels": "l", "content+labels": "~", "details": "."}


# --- History -----------------------------------------------------------------------------------------------------


def _configure_dataset(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME")


def _list(args: argparse.Namespace, settings: config.Settings) -> int:
    with repository_of(settings) as repository:
        refs = refs_by_commit(repository.dataset(args.name))
        versions = repository.versions(args.name)
    if args.json:
        frame.emit_json([{**snapshot_document(one), "refs": refs.get(one.commit.id, [])} for one in versions])
        return 0
    rows = []
    for one in versions:
        commit = one.commit
        entries, size = amounts.format_count(commit.entry_count), amounts.format_size(commit.size_bytes)
        named = ", ".join(refs.get(commit.id, []))
        rows.append(
            (f"v{one.number}", commit.short_id, when(commit), commit.author, entries, size, named, commit.message)
        )
    if rows:
        frame.emit_table(rows, header=("VERSION", "ID", "TIME (UTC)", "AUTHOR", "ENTRIES", "SIZE", "REFS", "MESSAGE"))
    else:
        frame.message(f"{args.name} has no versions yet")
    return 0


def _configure_log(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("snapshot", metavar="NAME[@REF]", help="history of this version; of all refs without @REF")
    parser.add_argument("-n", "--limit", type=int, metavar="N", help="only the newest N")
    parser.add_argument("--oneline", action="store_true", help="one line for each")


def _log(args: argparse.Namespace, settings: config.Settings) -> int:
    with repository_of(settings) as repository:
        dataset = args.snapshot.partition("@")[0]
        refs = refs_by_commit(repository.dataset(dataset))
        numbers = {one.commit.id: one.number for one in repository.versions(dataset)}
        commits = {
            one.id: one for one in repository.log(args.snapshot) if not _is_archive(one.message, one.id, numbers)
        }
    shown = 0
    for line in draw((one.id, [p for p in one.parents if p in commits]) for one in commits.values()):
        if line.commit is None:
            if not args.json:
                print(line.graph)
            continue
        if shown == args.limit:
            break
        shown += 1
        commit = commits[line.commit]
        number, named = numbers.get(commit.id), refs.get(commit.id, [])
        if args.json:
            frame.emit_json({**commit_document(commit), "version": number, "refs": named})
            continue
        title = " ".join(([f"v{number}"] if number else []) + ([f"({', '.join(named)})"] if named else []))
        print(f"{line.graph}  {commit.short_id} {title}  {commit.message}".rstrip())
        if not args.oneline:
            rail = line.graph.replace("*", "|" if any(p in commits for p in commit.parents) else " ")
            size = f"{amounts.format_count(commit.entry_count)} entries, {amounts.format_size(commit.size_bytes)}"
            print(f"{rail}  {when(commit)} UTC, {commit.author}: {size}")
            if commit.command:
                print(f"{rail}  $ {commit.command}")
            print(rail.rstrip())
    return 0


def _is_archive(message: str, commit_id: bytes, numbers: dict[bytes, int]) -> bool:
    """Whether a commit is the hidden record of an archive: it has no number, and its message is where the archive lies."""
    return commit_id not in numbers and "://" in message


def _configure_show(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("snapshot", metavar="NAME@REF")
    parser.add_argument(
        "--stores", action="store_true", help="also the stores that its objects are in (reads all of it)"
    )


def _show(args: argparse.Namespace, settings: config.Settings) -> int:
    with repository_of(settings) as repository:
        snapshot = repository.resolve(args.snapshot)
        refs = refs_by_commit(repository.dataset(snapshot.dataset)).get(snapshot.commit.id, [])
        archive = archive_of(repository, snapshot)
        stores = _stores_of(snapshot) if args.stores else []
    if args.json:
        archived = archive.url if archive else None
        found = {"stores": stores} if args.stores else {}
        frame.emit_json({**snapshot_document(snapshot), "refs": refs, "archive": archived, **found})
        return 0
    commit = snapshot.commit
    rows = [
        ("version", snapshot.version_name),
        ("id", commit.id.hex()),
        ("refs", ", ".join(refs) or "-"),
        ("parents", ", ".join(parent.hex()[:12] for parent in commit.parents) or "-"),
        ("time", f"{when(commit)} UTC"),
        ("author", commit.author),
        ("message", commit.message or "-"),
        ("command", commit.command or "-"),
        ("entries", amounts.format_count(commit.entry_count)),
        ("size", f"{amounts.format_size(commit.size_bytes)} ({commit.size_bytes} bytes)"),
        ("archive", archive.url if archive else "-"),
    ]
    rows += [("store", store) for store in stores]
    frame.emit_table(rows)
    return 0


def _stores_of(snapshot: Snapshot) -> list[str]:
    return sorted({store for batch in snapshot.batches() for store in batch.column("store").unique().to_pylist()})


# --- Contents ------------------------------------------------------------------------------------------------------


def _configure_ls(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("snapshot", metavar="NAME@REF")
    parser.add_argument(
        "path", nargs="?", default="", metavar="PATH", help="a folder or file of it (default: the root)"
    )
    parser.add_argument("-l", "--long", action="store_true", help="with size, time and labels")
    parser.add_argument("-R", "--recursive", action="store_true", help="everything below, as paths")


def _ls(args: argparse.Namespace, settings: config.Settings) -> int:
    with repository_of(settings) as repository:
        snapshot = repository.resolve(args.snapshot)
        path = args.path.strip("/")
        found = False
        for one in _listed(snapshot, path, recursive=args.recursive):
            found = True
            if args.json:
                frame.emit_json(_listed_document(one))
            else:
                print(_listed_line(one, path, long=args.long, whole=args.recursive))
        if path and not found:
            raise UsageError(f"there is nothing at {path!r} in {snapshot.version_name}")
    return 0


def _listed(snapshot: Snapshot, path: str, *, recursive: bool) -> Iterator[FolderEntry | Entry]:
    if not recursive or (path and snapshot.find(path) is not None):
        yield from snapshot.ls(path)
        return
    for batch in snapshot.select(Selection(folder=path or None)):
        yield from entries_of(batch)


def _listed_document(one: FolderEntry | Entry) -> dict[str, Any]:
    if isinstance(one, FolderEntry):
        return {"folder": one.name, "entries": one.entry_count, "bytes": one.size_bytes}
    return {
        "path": one.path,
        "store": one.version.store,
        "key": one.version.key,
        "etag": one.version.etag,
        "versionId": one.version.version_id,
        "size": one.version.size,
        "mtimeNs": one.mtime_ns,
        "sha256": one.sha256,
        "labels": one.labels,
    }


def _listed_line(one: FolderEntry | Entry, folder: str, *, long: bool, whole: bool) -> str:
    if isinstance(one, FolderEntry):
        if not long:
            return f"{one.name}/"
        return f"{amounts.format_size(one.size_bytes):>10}  {'':<19}  {one.name}/  ({amounts.format_count(one.entry_count)})"
    name = one.path if whole else one.path.rpartition("/")[2]
    if not long:
        return name
    time = ""
    if one.mtime_ns is not None:
        time = datetime.datetime.fromtimestamp(one.mtime_ns / 1e9, datetime.UTC).strftime("%Y-%m-%d %H:%M:%S")
    labels = f"  {json.dumps(one.labels, ensure_ascii=False)}" if one.labels is not None else ""
    return f"{amounts.format_size(one.version.size):>10}  {time:<19}  {name}{labels}"


def _configure_diff(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("old", metavar="OLD", help="NAME@REF")
    parser.add_argument("new", metavar="NEW", help="NAME@REF")
    parser.add_argument("--stat", action="store_true", help="only the counts")


def _diff(args: argparse.Namespace, settings: config.Settings) -> int:
    summary = DiffSummary()
    with repository_of(settings) as repository:
        for batch in repository.diff(args.old, args.new):
            summary.add(batch)
            if not args.stat:
                for row in batch.to_pylist():
                    if args.json:
                        frame.emit_json(_diff_document(row))
                    else:
                        print(_diff_line(row))
    counts = {
        change: {"entries": count, "bytes": summary.size_bytes[change]}
        for change, count in sorted(summary.counts.items())
    }
    if args.json:
        frame.emit_json({"summary": counts})
    elif not counts:
        frame.message("the two have the same content")
    else:
        rows = [
            (change, amounts.format_count(one["entries"]), amounts.format_size(one["bytes"]))
            for change, one in counts.items()
        ]
        sys.stdout.flush()
        for change, entries, size in rows:
            print(f"{entries} {change}, {size}", file=sys.stdout if args.stat else sys.stderr)
    return 0


def _diff_document(row: dict[str, Any]) -> dict[str, Any]:
    sides = {
        side: {name.removeprefix(f"{side}_"): value for name, value in row.items() if name.startswith(f"{side}_")}
        for side in ("old", "new")
    }
    absent = {"added": "old", "removed": "new"}.get(row["change"])
    return {
        "path": row["path"],
        "change": row["change"],
        **{side: None if side == absent else fields for side, fields in sides.items()},
    }


def _diff_line(row: dict[str, Any]) -> str:
    mark, path, change = CHANGE_MARKS.get(row["change"], "?"), row["path"], row["change"]
    if change in ("added", "removed"):
        size = row["new_size"] if change == "added" else row["old_size"]
        return f"{mark} {path}  {amounts.format_size(size)}"
    details = []
    if "content" in change:
        details.append(f"{amounts.format_size(row['old_size'])} -> {amounts.format_size(row['new_size'])}")
    if "labels" in change:
        details.append(f"labels {row['old_labels'] or '{}'} -> {row['new_labels'] or '{}'}")
    return f"{mark} {path}  {'; '.join(details) or change}"


def _configure_stats(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("snapshot", metavar="NAME@REF")
    parser.add_argument("--depth", type=int, default=1, metavar="N", help="folders down to this depth (default: 1)")
    parser.add_argument("--top", type=int, default=20, metavar="N", help="the N largest of each kind (default: 20)")


def _stats(args: argparse.Namespace, settings: config.Settings) -> int:
    with repository_of(settings) as repository:
        snapshot = repository.resolve(args.snapshot)
        found = snapshot.stats(folder_depth=args.depth)
    if args.json:
        kinds: dict[str, Any] = {
            "labels": {label: _tallies(values) for label, values in found.labels.items()},
            "folders": _tallies(found.folders),
            "sizes": {str(bound): _tally(one) for bound, one in sorted(found.sizes.items())},
            "unlabelled": _tally(found.unlabelled),
        }
        frame.emit_json({**snapshot_document(snapshot), **kinds})
        return 0
    total = found.total
    print(
        f"{snapshot.version_name}: {_tally_text(total)}, {amounts.format_count(found.unlabelled.entry_count)} without labels"
    )
    for label, values in sorted(found.labels.items()):
        _print_top(f"label.{label}", values, args.top)
    _print_top("folders", {name or "(root)": one for name, one in found.folders.items()}, args.top)
    bounds = {f"up to {amounts.format_size(b)}" if b else "empty": one for b, one in sorted(found.sizes.items())}
    _print_rows("sizes", list(bounds.items()))
    return 0


def _tally(one: Any) -> dict[str, int]:
    return {"entries": one.entry_count, "bytes": one.size_bytes}


def _tallies(values: dict[str, Any]) -> dict[str, dict[str, int]]:
    return {name: _tally(one) for name, one in values.items()}


def _tally_text(one: Any) -> str:
    return f"{amounts.format_count(one.entry_count)} entries, {amounts.format_size(one.size_bytes)}"


def _print_top(title: str, values: dict[str, Any], top: int) -> None:
    ordered = sorted(values.items(), key=lambda item: (-item[1].entry_count, item[0]))
    if len(ordered) > top and ordered[0][1].entry_count == 1:
        print(f"\n{title}\n  {amounts.format_count(len(ordered))} values or more, each in one entry")
        return
    _print_rows(title, ordered[:top])
    if len(ordered) > top:
        print(f"  and {amounts.format_count(len(ordered) - top)} more")


def _print_rows(title: str, rows: list[tuple[str, Any]]) -> None:
    print(f"\n{title}")
    texts = [(name, amounts.format_count(one.entry_count), amounts.format_size(one.size_bytes)) for name, one in rows]
    widths = [max((len(text[column]) for text in texts), default=0) for column in range(3)]
    for name, count, size in texts:
        print(f"  {name:<{widths[0]}}  {count:>{widths[1]}}  {size:>{widths[2]}}")


def _configure_export(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("snapshot", metavar="NAME@REF")
    parser.add_argument(
        "file",
        nargs="?",
        default="-",
        metavar="FILE",
        help="JSON lines, compressed if it ends in .gz or .lz4 (default: stdout)",
    )
    parser.add_argument("--where", metavar="EXPR", help="only entries of which this is true")
    parser.add_argument("--folder", metavar="PATH", help="only what is in this folder")
    parser.add_argument("--sample", type=percentage, metavar="PERCENT", help="a part of it, as in `snapshot select`")
    parser.add_argument("--seed", type=int, default=0, metavar="N")


def _export(args: argparse.Namespace, settings: config.Settings) -> int:
    folder = args.folder.strip("/") if args.folder else None
    selection = Selection(where=args.where, folder=folder, sample=args.sample, seed=args.seed)
    with repository_of(settings) as repository:
        snapshot = repository.resolve(args.snapshot)
        count = 0
        to_file = args.file != "-"
        with (
            _output(args.file) as out,
            progress.show(f"export {args.snapshot}", unit="entries", quiet=args.json or not to_file) as shown,
        ):
            for line in repository.export(f"{snapshot.dataset}@{snapshot.commit.id.hex()}", selection):
                out.write(line)
                count += 1
                if count % 1000 == 0:
                    shown.update(done=count)
    if to_file and args.json:
        frame.emit_json({**snapshot_document(snapshot), "file": args.file, "lines": count})
    elif to_file:
        print(f"{amounts.format_count(count)} entries of {snapshot.version_name} are in {args.file}")
    return 0


@contextlib.contextmanager
def _output(name: str) -> Iterator[IO[bytes]]:
    """Stdout, or a file that appears under its name when all of it is written."""
    if name == "-":
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    path = Path(name)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as raw:
            opened: Any = raw
            if name.endswith(".gz"):
                opened = gzip.GzipFile(fileobj=raw, mode="wb")
            elif name.endswith(".lz4"):
                opened = lz4.frame.LZ4FrameFile(raw, mode="wb")
            yield opened
            if opened is not raw:
                opened.close()
            raw.flush()
            os.fsync(raw.fileno())
        part.rename(path)
    except OSError as error:
        raise UsageError(f"cannot write {name}: {error.strerror or error}") from error
    finally:
        part.unlink(missing_ok=True)


LOOK = (
    Action("list", "list the versions of a dataset, newest first", _configure_dataset, _list),
    Action(
        "log", "show the history as a graph: who made what from what, and how", _configure_log, _log, json_lines=True,
        epilog="examples:\n  forebay snapshot log pets\n  forebay snapshot log pets@paper-2026 --oneline\n",
    ),
    Action("show", "show one version", _configure_show, _show),
    Action(
        "ls", "list what is in a version, like ls", _configure_ls, _ls, json_lines=True,
        epilog="examples:\n  forebay snapshot ls pets@v7\n  forebay snapshot ls pets@v7 cats -l\n",
    ),
    Action(
        "diff", "show what was added, removed and changed between two versions", _configure_diff, _diff, json_lines=True,
        epilog="+ added, - removed, ~ other content, l other labels, . other time or hash\n\n"
        "example:\n  forebay snapshot diff pets@v6 pets@v7 --stat\n",
    ),
    Action("stats", "count entries and bytes by label, folder and size", _configure_stats, _stats),
    Action(
        "export", "write a version as a manifest, which `dataset import` makes the same version of", _configure_export,
        _export, epilog="example:\n  forebay snapshot export pets@v7 pets-v7.jsonl.gz\n",
    ),
)  # fmt: skip
