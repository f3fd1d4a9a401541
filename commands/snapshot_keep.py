"""`forebay snapshot verify|archive|gc`: are the objects still there, keep them, and free what no version needs."""

import argparse
import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from .. import amounts, config
from ..errors import DriftFound, UsageError
from ..snapshots import GcReport, Note
from ..snapshots.archive import Archiver, ArchiveReport
from ..snapshots.archive_record import archive_of, record_archive
from ..snapshots.gc import DEFAULT_GRACE_S
from ..snapshots.verify import Drift, Verifier
from . import frame, progress
from .actions import STORE_SETTINGS, Action, repository_of, snapshot_document, this_command
from .store_loop import StoreLoop

SHOWN_DRIFT = 20


# --- Verify ------------------------------------------------------------------------------------------------------


def _configure_verify(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("snapshot", metavar="NAME@REF")
    parser.add_argument(
        "--list", type=Path, metavar="FILE", help="write every object that drifted there, as JSON lines"
    )
    parser.add_argument("--originals", action="store_true", help="of an archived version, look at the originals")


def _verify(args: argparse.Namespace, settings: config.Settings) -> int:
    with repository_of(settings) as repository, StoreLoop(settings) as stores:
        snapshot = repository.resolve(args.snapshot)
        archive = None if args.originals else archive_of(repository, snapshot)
        root = archive.commit.root if archive else snapshot.root
        total, total_bytes = snapshot.commit.entry_count, snapshot.commit.size_bytes
        verifier = Verifier(repository.reader.batches(root), total, stores.stores)
        report = verifier.report
        with progress.show(f"verify {args.snapshot}", quiet=args.json) as shown, _drift_file(args.list) as listing:
            for drift in stores.iterate(verifier.drift(lambda: shown.update(done=report.checked, total=total))):
                if listing is not None:
                    listing.write(json.dumps(_drift_document(drift)) + "\n")
                if args.json:
                    frame.emit_json(_drift_document(drift))
                elif report.drift_count <= SHOWN_DRIFT:
                    shown.say(_drift_line(drift))
    if args.json:
        counts = {problem.value: count for problem, count in report.drift.items()}
        requests = {"heads": report.heads, "listings": report.listings}
        frame.emit_json({**snapshot_document(snapshot), "checked": report.checked, "drift": counts, **requests})
    if report.drift_count:
        more = f" (all in {args.list})" if args.list else ""
        raise DriftFound(
            f"{amounts.format_count(report.drift_count)} of {amounts.format_count(total)} objects of {snapshot.version_name}"
            f" are not what was recorded: {report.drift_text}{more}",
            remedy="see docs/snapshots.md, what to do about drift",
        )
    if not args.json:
        where = f"in its archive {archive.url}" if archive else "where they were"
        print(
            f"all {amounts.format_count(total)} objects ({amounts.format_size(total_bytes)}) are as recorded, {where}"
        )
    return 0


def _drift_document(drift: Drift) -> dict[str, Any]:
    version = drift.version
    return {
        "path": drift.path,
        "problem": drift.problem.value,
        "store": version.store,
        "key": version.key,
        "versionId": version.version_id,
        "recorded": {"etag": version.etag, "size": version.size},
        "found": None if drift.found_etag is None else {"etag": drift.found_etag, "size": drift.found_size},
    }


def _drift_line(drift: Drift) -> str:
    version = drift.version
    found = ""
    if drift.found_size is not None and drift.found_size != version.size:
        found = f", {amounts.format_size(version.size)} -> {amounts.format_size(drift.found_size)}"
    return f"{drift.problem.value}: {drift.path}  ({version.store} {version.key}{found})"


@contextlib.contextmanager
def _drift_file(path: Path | None) -> Iterator[IO[str] | None]:
    if path is None:
        yield None
        return
    try:
        with path.open("w", encoding="utf-8") as file:
            yield file
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror or error}") from error


# --- Archive -------------------------------------------------------------------------------------------------------


def _configure_archive(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("snapshot", metavar="NAME@REF")
    parser.add_argument(
        "--to", required=True, metavar="URL", help="s3://bucket/prefix, best one that nobody else writes to"
    )


def _archive(args: argparse.Namespace, settings: config.Settings) -> int:
    with repository_of(settings) as repository, StoreLoop(settings) as stores:
        snapshot = repository.resolve(args.snapshot)
        target, prefix = stores.open(args.to)
        total, total_bytes = snapshot.commit.entry_count, snapshot.commit.size_bytes
        report = ArchiveReport(total, total_bytes)
        archiver = Archiver(stores.stores, target, prefix, report)
        with progress.show(f"archive {args.snapshot}", quiet=args.json) as shown:
            archiver.on_progress = lambda: shown.update(
                done=report.done, total=total, done_bytes=report.done_bytes, total_bytes=total_bytes
            )
            entries = archiver.archived_batches(snapshot.batches(), stores.loop)
            record_archive(repository, snapshot, entries, args.to, Note(command=this_command()))
    if args.json:
        counts = {"copied": report.copied, "copied_bytes": report.copied_bytes, "already_there": report.already_there}
        frame.emit_json({**snapshot_document(snapshot), "archive": args.to, **counts})
    else:
        print(
            f"{snapshot.version_name} is archived in {args.to} and read from there from now on:"
            f" {amounts.format_count(report.copied)} objects ({amounts.format_size(report.copied_bytes)}) were copied,"
            f" {amounts.format_count(report.already_there)} were there"
        )
    return 0


# --- gc --------------------------------------------------------------------------------------------------------------


def _configure_gc(parser: argparse.ArgumentParser) -> None:
    how = parser.add_mutually_exclusive_group()
    how.add_argument(
        "--dry-run", action="store_true", help="say what --mark would mark, and change nothing (the default)"
    )
    how.add_argument("--mark", action="store_true", help="mark what no version and no lease needs")
    how.add_argument("--sweep", action="store_true", help="delete what was marked, and is still not needed")
    parser.add_argument("--grace", default=None, metavar="DURATION", help="spare what is younger (default: 24h)")


def _gc(args: argparse.Namespace, settings: config.Settings) -> int:
    grace_s = amounts.parse_duration_s(args.grace) if args.grace else DEFAULT_GRACE_S
    with repository_of(settings) as repository:
        collector = repository.collector(grace_s=grace_s)
        if args.mark:
            report, did = collector.mark(), "marked"
        elif args.sweep:
            report, did = collector.sweep(), "deleted"
        else:
            report, did = collector.plan(), "would be marked"
    if args.json:
        frame.emit_json(_gc_document(report, did))
        return 0
    print(
        f"{amounts.format_count(report.pages)} pages ({amounts.format_size(report.bytes)}) and"
        f" {amounts.format_count(report.commits)} versions {did}"
    )
    if not args.sweep:
        young = (
            f", {amounts.format_count(report.young_pages)} unneeded ones are too young" if report.young_pages else ""
        )
        print(f"{amounts.format_count(report.reachable_pages)} pages are in use{young}")
    for held in report.held:
        lease = held.lease
        print(
            f"held by {lease.what} ({lease.owner} on {lease.host}, process {lease.pid}):"
            f" {amounts.format_count(held.pages)} pages, {amounts.format_size(held.bytes)}"
        )
    for text in report.damaged:
        frame.message(f"damaged: {text}")
    if args.mark and report.pages:
        frame.message("delete them with `forebay snapshot gc --sweep`")
    return 0


def _gc_document(report: GcReport, did: str) -> dict[str, Any]:
    return {
        "did": did,
        "run": report.run,
        "pages": report.pages,
        "bytes": report.bytes,
        "commits": report.commits,
        "reachable_pages": report.reachable_pages,
        "young_pages": report.young_pages,
        "held": [
            {
                "what": held.lease.what, "purpose": held.lease.purpose, "owner": held.lease.owner, "host": held.lease.host,
                "pid": held.lease.pid, "dataset": held.lease.dataset, "pages": held.pages, "bytes": held.bytes,
            }
            for held in report.held
        ],
        "damaged": report.damaged,
    }  # fmt: skip


KEEP = (
    Action(
        "verify", "check that every object is still the version that was recorded", _configure_verify, _verify, json_lines=True,
        epilog="Exit status 0 if all are; see docs/exit-codes.md for the others.\n\n"
        "example:\n  forebay snapshot verify pets@v7 --list drift.jsonl\n",
        settings=STORE_SETTINGS,
    ),
    Action(
        "archive", "copy the objects of a version to a place of its own, from where it is read from then on",
        _configure_archive, _archive,
        epilog="Copies are made by the store itself where it can, each content once; an interrupted archive is gone on with.\n\n"
        "example:\n  forebay snapshot archive pets@paper-2026 --to s3://archive/pets\n",
        settings=STORE_SETTINGS,
    ),
    Action(
        "gc", "free the metadata that no version and no lease needs (objects of buckets are never touched)",
        _configure_gc, _gc,
        epilog="example:\n  forebay snapshot gc\n  forebay snapshot gc --mark && forebay snapshot gc --sweep\n",
    ),
)  # fmt: skip
