"""Datasets: names whose versions say exactly which objects they hold.

A dataset is made once; every import and every change makes a new version of it (`forebay snapshot` looks at those).
No data is copied: a version says which object versions in which bucket it is made of.

examples:
  forebay dataset import pets labels.jsonl -m "first delivery"
  forebay dataset label pets cats/ --set class=cat
  forebay mount pets@latest /mnt/pets
"""

import argparse

from .. import amounts, config
from ..snapshots import DatasetRecord
from . import frame
from .actions import Action, add_actions, confirm, repository_of, run_action, visible_tags
from .dataset_change import CHANGES


def configure(parser: argparse.ArgumentParser) -> None:
    add_actions(parser, ACTIONS)


def run(args: argparse.Namespace, settings: config.Settings) -> int:
    return run_action(ACTIONS, args, settings)


def _configure_create(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME")
    parser.add_argument("--description", default="", metavar="TEXT", help="what it is, for `dataset list`")


def _create(args: argparse.Namespace, settings: config.Settings) -> int:
    with repository_of(settings) as repository:
        record = repository.create_dataset(args.name, args.description)
    if args.json:
        frame.emit_json(_document(record))
    else:
        print(f"dataset {record.name} is made; fill it with `forebay dataset import {record.name} MANIFEST`")
    return 0


def _list(args: argparse.Namespace, settings: config.Settings) -> int:
    with repository_of(settings) as repository:
        records = repository.datasets()
    if args.json:
        frame.emit_json([_document(record) for record in records])
    elif records:
        rows = [(record.name, str(record.version_count), record.description) for record in records]
        frame.emit_table(rows, header=("NAME", "VERSIONS", "DESCRIPTION"))
    else:
        frame.message("there are no datasets yet; make one with `forebay dataset import NAME MANIFEST`")
    return 0


def _configure_name(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME")


def _show(args: argparse.Namespace, settings: config.Settings) -> int:
    with repository_of(settings) as repository:
        record = repository.dataset(args.name)
        versions = repository.versions(args.name)
    newest = versions[0] if versions else None
    if args.json:
        total = {"entries": newest.commit.entry_count, "bytes": newest.commit.size_bytes} if newest else {}
        frame.emit_json({**_document(record), **total})
        return 0
    rows = [("name", record.name), ("description", record.description or "-")]
    rows += [("versions", str(record.version_count))]
    if newest is not None:
        size = amounts.format_size(newest.commit.size_bytes)
        rows.append(("newest", f"v{newest.number}: {amounts.format_count(newest.commit.entry_count)} entries, {size}"))
    rows += [("branch", f"{name} at {at.hex()[:12]}") for name, at in sorted(record.branches.items())]
    rows += [("tag", f"{name} at {at.hex()[:12]}") for name, at in visible_tags(record).items()]
    frame.emit_table(rows)
    return 0


def _configure_delete(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME")
    parser.add_argument("--yes", action="store_true", help="do not ask")


def _delete(args: argparse.Namespace, settings: config.Settings) -> int:
    with repository_of(settings) as repository:
        record = repository.dataset(args.name)
        confirm(f"Delete the dataset {args.name} with its {record.version_count} versions?", yes=args.yes)
        repository.delete_dataset(args.name)
    if args.json:
        frame.emit_json({"deleted": args.name})
    else:
        print(
            f"dataset {args.name} is deleted; no object of any bucket was touched, `forebay snapshot gc` frees its pages"
        )
    return 0


def _document(record: DatasetRecord) -> dict[str, object]:
    return {
        "name": record.name,
        "description": record.description,
        "created_ms": record.created_ms,
        "versions": record.version_count,
        "branches": {name: at.hex() for name, at in record.branches.items()},
        "tags": {name: at.hex() for name, at in visible_tags(record).items()},
    }


ACTIONS = (
    Action("create", "make an empty dataset", _configure_create, _create),
    Action("list", "list the datasets", lambda parser: None, _list),
    Action("show", "show one dataset: its branches, tags and newest version", _configure_name, _show),
    Action("delete", "delete a dataset with all its versions; objects in buckets stay", _configure_delete, _delete),
    *CHANGES,
)
