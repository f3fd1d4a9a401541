"""`forebay snapshot create|select|split|merge|rollback|tag|branch`: what makes versions and names them."""

import argparse
from pathlib import Path
from typing import Any

from .. import amounts, config
from ..errors import UsageError
from ..snapshots import Made, ManifestOptions, Selection, Split
from ..snapshots.bucket_pages import bucket_pages
from ..snapshots.names import MAIN
from ..snapshots.object_listing import blocking
from . import frame, progress
from .actions import (
    STORE_SETTINGS,
    Action,
    add_making,
    dataset_made,
    note_of,
    percentage,
    report_made,
    repository_of,
    snapshot_document,
    tag_made,
)
from .dataset_change import rejects_file, report_rejects
from .store_loop import StoreLoop

# --- From a bucket ---------------------------------------------------------------------------------------------


def _configure_create(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="the dataset; it is made if there is none of that name")
    parser.add_argument("--from", dest="source", required=True, metavar="URL", help="s3://bucket[/prefix], file:///dir")
    parser.add_argument(
        "--on-error", choices=("stop", "skip"), default="stop",
        help="at a key that is no path, or stands where a folder is: stop, or leave it out (default: stop)",
    )  # fmt: skip
    parser.add_argument("--rejects", type=Path, metavar="FILE", help="where they go (default: NAME.rejects.jsonl here)")
    add_making(parser)


def _create(args: argparse.Namespace, settings: config.Settings) -> int:
    with repository_of(settings) as repository, StoreLoop(settings) as stores:
        store, prefix = stores.open(args.source)
        with (
            dataset_made(repository, args.name),
            progress.show(f"list {args.source}", quiet=args.json) as shown,
        ):
            found = repository.create_from_listing(
                args.name,
                store.id,
                blocking(bucket_pages(store, prefix), stores.loop),
                prefix=prefix,
                branch=args.branch,
                note=note_of(args),
                options=ManifestOptions(
                    on_error=args.on_error,
                    rejects=rejects_file(args),
                    progress=lambda at: shown.update(done=at.lines),
                ),
            )
            tag_made(repository, found.made, args)
    report_made(found.made, args, {"rejected": found.progress.rejected})
    report_rejects(found.progress, args, "keys")
    return 0


# --- From other versions ------------------------------------------------------------------------------------------


def _configure_select(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("snapshot", metavar="NAME@REF")
    parser.add_argument(
        "--where", metavar="EXPR", help="condition on labels, path, size, mtime... (docs/conditions.md)"
    )
    parser.add_argument("--folder", metavar="PATH", help="only what is in this folder")
    parser.add_argument(
        "--sample", type=percentage, metavar="PERCENT", help="a part of it, such as 10%%, the same for each seed"
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="another seed takes another sample (default: 0)"
    )
    parser.add_argument("--limit", type=int, metavar="N", help="at most so many entries, the first in path order")
    add_making(parser, branch="selection")


def _select(args: argparse.Namespace, settings: config.Settings) -> int:
    folder = args.folder.strip("/") if args.folder else None
    selection = Selection(where=args.where, folder=folder, sample=args.sample, seed=args.seed, limit=args.limit)
    with repository_of(settings) as repository:
        made = repository.select(args.snapshot, selection, branch=args.branch, note=note_of(args))
        tag_made(repository, made, args)
        report_made(made, args)
    if not made.snapshot.commit.entry_count and not args.json:
        frame.message(f"no entry was chosen; `forebay snapshot stats {args.snapshot}` shows which labels there are")
    return 0


def _configure_split(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("snapshot", metavar="NAME@REF")
    for part in ("train", "val", "test"):
        parser.add_argument(
            f"--{part}", type=percentage, metavar="SHARE", help=f"share of the branch {part}, such as 0.8"
        )
    parser.add_argument(
        "--part", action="append", default=[], metavar="NAME=SHARE", help="a part of another name; may be repeated"
    )
    parser.add_argument(
        "--by", default="path", metavar="FIELD",
        help="what stays together: path, folder, or a label such as label.patient (default: path)",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="another seed splits otherwise (default: 0)")
    parser.add_argument("--prefix", default="", metavar="TEXT", help="in front of the names of the branches")
    parser.add_argument("-m", "--message", default="", metavar="TEXT", help="what it is, for `snapshot log`")
    parser.add_argument("--author", default="", metavar="NAME", help="who made it (default: the user's name)")


def _split(args: argparse.Namespace, settings: config.Settings) -> int:
    shares = {part: getattr(args, part) for part in ("train", "val", "test") if getattr(args, part) is not None}
    for text in args.part:
        name, _, share = text.partition("=")
        try:
            shares[name] = percentage(share)
        except argparse.ArgumentTypeError as error:
            raise UsageError(f"--part {text}: {error}") from error
    split = Split(shares, by=args.by, seed=args.seed)
    with repository_of(settings) as repository:
        made = repository.split(args.snapshot, split, prefix=args.prefix, note=note_of(args))
    if args.json:
        frame.emit_json({name: snapshot_document(part.snapshot) for name, part in made.items()})
        return 0
    rows = []
    for name, part in made.items():
        commit = part.snapshot.commit
        size = amounts.format_size(commit.size_bytes)
        rows.append((args.prefix + name, part.snapshot.version_name, amounts.format_count(commit.entry_count), size))
    frame.emit_table(rows, header=("BRANCH", "VERSION", "ENTRIES", "SIZE"))
    empty = [name for name, part in made.items() if not part.snapshot.commit.entry_count]
    if empty:
        frame.message(
            f"nothing fell to {', '.join(empty)}: the more different values of {args.by}, the closer the shares"
        )
    return 0


def _configure_merge(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("snapshot", metavar="NAME@REF", help="what to bring in")
    parser.add_argument(
        "--on-conflict", choices=("fail", "ours", "theirs"), default="fail",
        help="where both changed a path: fail (nothing changes), or take one side for all (default: fail)",
    )  # fmt: skip
    add_making(parser)


def _merge(args: argparse.Namespace, settings: config.Settings) -> int:
    with repository_of(settings) as repository:
        made, conflicts = repository.merge(
            args.snapshot, branch=args.branch, on_conflict=args.on_conflict, note=note_of(args)
        )
        tag_made(repository, made, args)
        report_made(made, args, {"conflicts": conflicts.count})
    if conflicts.count and not args.json:
        frame.message(
            f"{amounts.format_count(conflicts.count)} conflicts, for all of which {args.on_conflict} was taken"
        )
    return 0


def _configure_rollback(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("snapshot", metavar="NAME@REF", help="the version to go back to")
    add_making(parser)


def _rollback(args: argparse.Namespace, settings: config.Settings) -> int:
    with repository_of(settings) as repository:
        made: Made = repository.rollback(args.snapshot, branch=args.branch, note=note_of(args))
        tag_made(repository, made, args)
        report_made(made, args)
    return 0


# --- Names -----------------------------------------------------------------------------------------------------------


def _configure_tag(parser: argparse.ArgumentParser) -> None:
    _configure_ref(parser, "TAG", "tag")


def _configure_branch(parser: argparse.ArgumentParser) -> None:
    _configure_ref(parser, "BRANCH", "branch")


def _configure_ref(parser: argparse.ArgumentParser, metavar: str, kind: str) -> None:
    parser.add_argument("snapshot", metavar="NAME[@REF]")
    parser.add_argument("ref", metavar=metavar)
    parser.add_argument("--force", action="store_true", help=f"move the {kind} if there is one of that name")
    parser.add_argument("--delete", action="store_true", help=f"remove the {kind}")


def _tag(args: argparse.Namespace, settings: config.Settings) -> int:
    return _set_ref("tag", args, settings)


def _branch(args: argparse.Namespace, settings: config.Settings) -> int:
    return _set_ref("branch", args, settings)


def _set_ref(kind: str, args: argparse.Namespace, settings: config.Settings) -> int:
    with repository_of(settings) as repository:
        if args.delete:
            dataset = args.snapshot.partition("@")[0]
            was = repository.delete_ref(dataset, kind, args.ref)
            document: dict[str, Any] = {"dataset": dataset, kind: args.ref, "deleted": True, "id": was.hex()}
            text = f"the {kind} {args.ref} of {dataset} is gone; it was at {was.hex()[:12]}"
        else:
            name = repository.tag if kind == "tag" else repository.branch
            snapshot = name(args.snapshot, args.ref, force=args.force)
            document = {**snapshot_document(snapshot), kind: args.ref}
            text = f"{snapshot.dataset}@{args.ref} is {snapshot.version_name} ({snapshot.commit.short_id})"
    if args.json:
        frame.emit_json(document)
    else:
        print(text)
    return 0


SELECT_EPILOG = """\
examples:
  forebay snapshot select pets@latest --where 'label.class == "cat" and size < 1e6' --branch cats
  forebay snapshot select pets@v7 --sample 10% --seed 7 --branch small -m "for the smoke test"
"""
SPLIT_EPILOG = """\
An entry never changes sides: the next version of the dataset splits what it shares with this one in the same way.

examples:
  forebay snapshot split pets@v7 --train 0.8 --val 0.1 --test 0.1
  forebay snapshot split scans@latest --train 0.9 --test 0.1 --by label.patient
"""

MAKE = (
    Action(
        "create", "make a version of what is under a prefix of a bucket now", _configure_create, _create,
        epilog="example:\n  forebay snapshot create pets --from s3://bucket/pets -m 'as delivered' --tag delivery-1\n",
        settings=STORE_SETTINGS,
    ),
    Action("select", "make a version of the entries that fit a condition; moves no data", _configure_select, _select, SELECT_EPILOG),
    Action("split", "make one version for each of train, val and test", _configure_split, _split, SPLIT_EPILOG),
    Action("merge", "bring what another branch changed into a branch", _configure_merge, _merge),
    Action(
        "rollback", "make the content of an older version the newest one of a branch", _configure_rollback, _rollback,
        epilog=f"example:\n  forebay snapshot rollback pets@v6 --branch {MAIN} -m 'v7 had wrong labels'\n",
    ),
    Action(
        "tag", "give a version a name that stays", _configure_tag, _tag,
        epilog="example:\n  forebay snapshot tag pets@v7 paper-2026\n",
    ),
    Action(
        "branch", "start a branch at a version", _configure_branch, _branch,
        epilog="example:\n  forebay snapshot branch pets@v7 relabel\n",
    ),
)  # fmt: skip
