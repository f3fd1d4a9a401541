"""`forebay dataset import|add|remove|label`: changing what is in a dataset. Each makes a new version of a branch."""

import argparse
import contextlib
import io
import json
import re
import sys
import urllib.parse
from pathlib import Path
from typing import Any

from .. import amounts, config
from ..errors import Incomplete, ManifestError, UsageError
from ..snapshots import Edited, ImportProgress, Location, ManifestOptions, Repository, Selection, Snapshot
from ..snapshots.relabel import LabelChange, label_place
from . import frame, progress
from .actions import STORE_SETTINGS, Action, add_making, dataset_made, note_of, report_made, repository_of, tag_made
from .store_loop import StoreLoop

IMPORT_EPILOG = """\
A line: {"url": "s3://bucket/cats/1.jpg", "path": "cats/1.jpg", "labels": {"class": "cat"}}. Sizes and etags that are
missing are looked up in the store, many at once. See docs/manifests.md.

examples:
  forebay dataset import pets labels.jsonl.gz -m "first delivery" --tag delivery-1
  forebay dataset import pets keys.jsonl --base s3://bucket/images --on-error skip
  zcat labels.jsonl.gz | forebay dataset import pets -
"""
ADD_EPILOG = """\
examples:
  forebay dataset add pets s3://bucket/cats/new.jpg --set class=cat
  forebay dataset add pets --manifest more.jsonl -m "second delivery"
"""
REMOVE_EPILOG = """\
examples:
  forebay dataset remove pets cats/blurred.jpg dogs/2019
  forebay dataset remove pets --where 'label.quality < 0.2' -m "drop bad pictures"
"""
LABEL_EPILOG = """\
examples:
  forebay dataset label pets cats dogs/puppies --set class=young --set checked=true
  forebay dataset label pets --where 'label.class == "kat"' --set class=cat
"""

# --- Manifests ---------------------------------------------------------------------------------------------------


def _add_manifest_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--base", metavar="URL", help="bucket, prefix or folder that URLs without a scheme are keys in")
    parser.add_argument(
        "--on-error",
        choices=("stop", "skip"),
        default="stop",
        help="at a line that cannot be used: stop (nothing changes), or skip it (default: stop)",
    )
    parser.add_argument(
        "--rejects", type=Path, metavar="FILE", help="where skipped lines go (default: NAME.rejects.jsonl here)"
    )
    parser.add_argument("--ignore-unknown", action="store_true", help="let lines have fields that are not known")


def _configure_import(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="the dataset; it is made if there is none of that name")
    parser.add_argument("manifest", metavar="MANIFEST", help="JSON lines, also .gz or .lz4; - for standard input")
    _add_manifest_options(parser)
    add_making(parser)


def _import(args: argparse.Namespace, settings: config.Settings) -> int:
    with (
        repository_of(settings) as repository,
        StoreLoop(settings) as stores,
        dataset_made(repository, args.name),
        progress.show(f"import {args.name}", unit="entries", quiet=args.json) as shown,
    ):
        found = repository.import_manifest(
            args.name,
            _source(args.manifest),
            branch=args.branch,
            note=note_of(args),
            options=_manifest_options(args, stores, shown),
        )
        tag_made(repository, found.made, args)
    report_made(found.made, args, {"lines": found.progress.lines, "rejected": found.progress.rejected})
    report_rejects(found.progress, args)
    return 0


def _source(manifest: str) -> str | Path:
    if manifest == "-":
        return manifest
    path = Path(manifest)
    if not path.exists():
        raise ManifestError(f"there is no manifest {manifest}")
    return path


def _manifest_options(
    args: argparse.Namespace, stores: StoreLoop, shown: progress.Progress | None = None
) -> ManifestOptions:
    base = None
    if args.base:
        store, prefix = stores.locate(args.base)
        base = Location(store.id, "", prefix)

    def report(at: ImportProgress) -> None:
        assert shown is not None
        # How much of a pipe was read is not known.
        read_bytes = at.read_bytes if at.total_bytes is not None else None
        shown.update(done=at.entries, done_bytes=read_bytes, total_bytes=at.total_bytes)

    return ManifestOptions(
        on_error=args.on_error,
        rejects=rejects_file(args),
        base=base,
        locator=Locations(stores),
        resolve=stores.look_up,
        ignore_unknown=args.ignore_unknown,
        progress=report if shown is not None else None,
    )


def rejects_file(args: argparse.Namespace) -> Path:
    """Where lines that are skipped go."""
    return args.rejects or Path(f"{args.name}.rejects.jsonl")


def report_rejects(found: ImportProgress, args: argparse.Namespace, what: str = "lines") -> None:
    """Raises Incomplete if something was skipped."""
    if found.rejected:
        raise Incomplete(
            f"{amounts.format_count(found.rejected)} {what} were skipped and are in {rejects_file(args)}; the rest is in",
            remedy="see the reasons there, correct them, and `dataset add --manifest` them",
        )


class Locations:
    """Which store a URL of a manifest is in: `s3://` at the endpoint in effect, and `http(s)://` URLs of it or of AWS."""

    def __init__(self, stores: StoreLoop) -> None:
        self._stores = stores

    def __call__(self, url: str) -> Location | None:
        parts = urllib.parse.urlsplit(url)
        if parts.scheme in ("s3", "s3a"):
            return self._bucket(parts.netloc, f"{parts.scheme}://{parts.netloc}/", percent_encoded=False)
        if parts.scheme in ("http", "https"):
            return self._of_http(parts)
        return None

    def _of_http(self, parts: urllib.parse.SplitResult) -> Location | None:
        """`https://host/bucket/key`, or `https://bucket.host/key`."""
        host, root = parts.netloc, f"{parts.scheme}://{parts.netloc}/"
        bucket = parts.path.lstrip("/").partition("/")[0]
        if bucket and (found := self._bucket(bucket, f"{root}{bucket}/", percent_encoded=True)) is not None:
            endpoint = found.store.partition("@")[2]
            if host == endpoint or (not endpoint and _is_aws(host) and host.startswith("s3")):
                return found
        bucket, _, service = host.partition(".")
        if (found := self._bucket(bucket, root, percent_encoded=True)) is None:
            return None
        endpoint = found.store.partition("@")[2]
        return found if service and (service == endpoint or (not endpoint and _is_aws(service))) else None

    def _bucket(self, bucket: str, url_prefix: str, *, percent_encoded: bool) -> Location | None:
        try:
            store, _ = self._stores.locate(f"s3://{bucket}")
        except UsageError:
            return None
        return Location(store.id, url_prefix, percent_encoded=percent_encoded)


def _is_aws(host: str) -> bool:
    return host.startswith("s3") and host.endswith((".amazonaws.com", ".amazonaws.com.cn"))


# --- Adding ------------------------------------------------------------------------------------------------------


def _configure_add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME")
    parser.add_argument(
        "urls", nargs="*", metavar="URL", help="objects to add; the path is the key unless --path says it"
    )
    parser.add_argument("--manifest", metavar="FILE", help="add the lines of a manifest instead; - for standard input")
    parser.add_argument("--path", metavar="PATH", help="path of the one object that is added")
    parser.add_argument(
        "--set", dest="labels", action="append", default=[], metavar="KEY=VALUE", help="label of what is added"
    )
    _add_manifest_options(parser)
    add_making(parser)


def _add(args: argparse.Namespace, settings: config.Settings) -> int:
    if bool(args.urls) == bool(args.manifest):
        raise UsageError("say what to add: URLs, or --manifest FILE")
    if args.path and len(args.urls) != 1:
        raise UsageError("--path goes with exactly one URL")
    files = [url for url in args.urls if "://" not in url and not args.base and Path(url).is_file()]
    if files:
        raise UsageError(
            f"{files[0]!r} is a file here, and no URL",
            remedy=f"for the lines of a manifest say --manifest {files[0]}; for keys of a bucket, --base s3://BUCKET",
        )
    labels = _parse_labels(args.labels)
    if labels and args.manifest:
        raise UsageError("--set goes with URLs; a manifest has its own labels")
    source: str | Path | io.BytesIO
    if args.manifest:
        source = _source(args.manifest)
    else:
        source = io.BytesIO(b"".join(_line(url, args.path, labels) for url in args.urls))
    with (
        repository_of(settings) as repository,
        StoreLoop(settings) as stores,
        dataset_made(repository, args.name),
    ):
        with progress.show(f"add to {args.name}", unit="entries", quiet=args.json) as shown:
            edited, found = repository.add(
                args.name,
                source,
                branch=args.branch,
                note=note_of(args),
                options=_manifest_options(args, stores, shown),
            )
        _report_edited(repository, edited, args)
    report_rejects(found, args)
    return 0


def _line(url: str, path: str | None, labels: dict[str, Any]) -> bytes:
    line: dict[str, Any] = {"url": url}
    if path:
        line["path"] = path
    if labels:
        line["labels"] = labels
    return json.dumps(line).encode() + b"\n"


# --- Removing and labelling ----------------------------------------------------------------------------------------


def _add_choice(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME")
    parser.add_argument("paths", nargs="*", metavar="PATH", help="files, or folders with all that is in them")
    parser.add_argument("-f", "--from-file", metavar="LIST", help="a file with one path per line; - for standard input")
    parser.add_argument("--where", metavar="EXPR", help="those of which this is true, as in `snapshot select`")


def _selection(args: argparse.Namespace, snapshot: Snapshot) -> Selection:
    """The entries that the arguments name. Raises UsageError if they name none, ManifestError for a path that is not there."""
    paths = list(args.paths)
    if args.from_file:
        with contextlib.nullcontext(sys.stdin) if args.from_file == "-" else Path(args.from_file).open() as lines:
            paths += [line.rstrip("\r\n") for line in lines if line.strip()]
    if not paths:
        if not args.where:
            raise UsageError("say which entries: paths, --from-file or --where")
        return Selection(where=args.where)
    files, folders = [], []
    for path in dict.fromkeys(path.strip("/") for path in paths):
        if snapshot.find(path) is not None:
            files.append(path)
        elif next(snapshot.select(Selection(folder=path)), None) is not None:
            folders.append(path)
        else:
            raise ManifestError(f"there is nothing at {path!r} in {snapshot.version_name}")
    if len(folders) == 1 and not files:
        return Selection(where=args.where, folder=folders[0])
    terms = [f"path in [{', '.join(map(_quoted, files))}]"] if files else []
    if folders:
        terms.append(f"path regex {_quoted('^(' + '|'.join(map(_regex_text, folders)) + ')/')}")
    named = " or ".join(terms)
    return Selection(where=f"({named}) and ({args.where})" if args.where else named)


def _quoted(text: str) -> str:
    """A text of the `--where` language."""
    return json.dumps(text, ensure_ascii=False)


def _regex_text(text: str) -> str:
    """RE2 that matches exactly this text."""
    return re.sub(r"([^\w/ -])", r"\\\1", text)


def _configure_remove(parser: argparse.ArgumentParser) -> None:
    _add_choice(parser)
    add_making(parser)


def _remove(args: argparse.Namespace, settings: config.Settings) -> int:
    with repository_of(settings) as repository:
        selection = _selection(args, repository.resolve(f"{args.name}@{args.branch}"))
        edited = repository.remove(args.name, selection=selection, branch=args.branch, note=note_of(args))
        _report_edited(repository, edited, args)
    return 0


def _configure_label(parser: argparse.ArgumentParser) -> None:
    _add_choice(parser)
    parser.add_argument(
        "--set", dest="labels", action="append", default=[], metavar="KEY=VALUE",
        help="give them this label; VALUE is JSON, or else text",
    )  # fmt: skip
    parser.add_argument("--unset", action="append", default=[], metavar="KEY", help="take this label away")
    parser.add_argument("--clear", action="store_true", help="take all their labels away first")
    add_making(parser)


def _label(args: argparse.Namespace, settings: config.Settings) -> int:
    change = LabelChange(
        put={label_place(key): value for key, value in _parse_labels(args.labels).items()},
        remove=[label_place(key) for key in args.unset],
        clear=args.clear,
    )
    if not change.put and not change.remove and not change.clear:
        raise UsageError("say what to do: --set KEY=VALUE, --unset KEY or --clear")
    with repository_of(settings) as repository:
        selection = _selection(args, repository.resolve(f"{args.name}@{args.branch}"))
        edited = repository.label(args.name, change, selection, branch=args.branch, note=note_of(args))
        _report_edited(repository, edited, args)
    return 0


def _parse_labels(texts: list[str]) -> dict[str, Any]:
    """`KEY=VALUE` options. VALUE is JSON where it can be read as that (numbers, true, quoted text), else text."""
    labels: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not key or not equals:
            raise UsageError(f"{text!r} is no label", remedy="write KEY=VALUE")
        try:
            labels[key] = json.loads(value)
        except ValueError:
            labels[key] = value
    return labels


def _report_edited(repository: Repository, edited: Edited, args: argparse.Namespace) -> None:
    tag_made(repository, edited.made, args)
    counts = edited.counts
    report_made(edited.made, args, {"added": counts.added, "replaced": counts.replaced, "removed": counts.removed})
    if not args.json:
        frame.message(
            f"{amounts.format_count(counts.added)} added, {amounts.format_count(counts.replaced)} changed,"
            f" {amounts.format_count(counts.removed)} removed"
        )


CHANGES = (
    Action(
        "import",
        "make a version of exactly what a manifest lists",
        _configure_import,
        _import,
        epilog=IMPORT_EPILOG,
        settings=STORE_SETTINGS,
    ),
    Action(
        "add",
        "add objects to a branch, or replace those of the same paths",
        _configure_add,
        _add,
        epilog=ADD_EPILOG,
        settings=STORE_SETTINGS,
    ),
    Action(
        "remove", "remove entries from a branch; the objects stay", _configure_remove, _remove, epilog=REMOVE_EPILOG
    ),
    Action("label", "change labels of entries of a branch", _configure_label, _label, epilog=LABEL_EPILOG),
)
