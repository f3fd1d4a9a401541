"""Commands with actions (`forebay dataset import`, `forebay snapshot diff`): one `Action` each, and what they share."""

import argparse
import datetime
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from .. import amounts, config
from ..errors import UsageError
from ..snapshots import Commit, DatasetRecord, Made, Note, Repository, Snapshot, open_repository
from ..snapshots.archive_record import TAG_PREFIX
from ..snapshots.names import MAIN
from ..snapshots.writing import command_line
from . import frame

COMMAND_LIMIT = 4096  # characters of the command line that are recorded
STORE_SETTINGS = ("endpoint-url", "profile", "anonymous", "io-timeout", "max-connections")


@dataclass(frozen=True, slots=True)
class Action:
    """One action: its name and summary, what to say below its help, and its two functions as a command has them."""

    name: str
    help: str
    configure: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace, config.Settings], int]
    epilog: str = ""
    settings: Sequence[str] = ()
    json_lines: bool = False  # with `--json`, one document per line rather than one


def add_actions(parser: argparse.ArgumentParser, actions: Sequence[Action]) -> None:
    """Make the actions sub-commands of `parser`; each gets `--json` and the settings it heeds."""
    subparsers = parser.add_subparsers(title="actions", dest="action", metavar="ACTION", required=True)
    for action in actions:
        sub = subparsers.add_parser(
            action.name,
            help=action.help,
            description=action.help[0].upper() + action.help[1:] + ".",
            epilog=action.epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        action.configure(sub)
        frame.add_json(sub, "answer as JSON, one line for each" if action.json_lines else "answer as one JSON document")
        frame.add_settings(sub, "meta-url", *action.settings)


def run_action(actions: Sequence[Action], args: argparse.Namespace, settings: config.Settings) -> int:
    return next(action for action in actions if action.name == args.action).run(args, settings)


@contextmanager
def repository_of(settings: config.Settings) -> Iterator[Repository]:
    """The repository that the settings name, closed afterwards. Raises MetadataUnavailable, ConfigError."""
    with open_repository(settings.meta_url) as repository:
        yield repository


@contextmanager
def dataset_made(repository: Repository, name: str) -> Iterator[None]:
    """Inside, there is a dataset of that name. One that was made for this goes again if what is inside fails."""
    existed = repository.meta.dataset(name) is not None
    repository.ensure_dataset(name)
    try:
        yield
    except BaseException:
        if not existed and not repository.dataset(name).version_count:
            repository.delete_dataset(name)
        raise


# --- Options of everything that makes a version. ---------------------------------------------------------------


def add_making(parser: argparse.ArgumentParser, *, branch: str = MAIN) -> None:
    """`--branch`, `--message`, `--author` and `--tag`."""
    group = parser.add_argument_group("the new version")
    group.add_argument("--branch", default=branch, metavar="NAME", help=f"branch that gets it (default: {branch})")
    group.add_argument("-m", "--message", default="", metavar="TEXT", help="what it is, for `snapshot log`")
    group.add_argument("--author", default="", metavar="NAME", help="who made it (default: the user's name)")
    group.add_argument("--tag", metavar="NAME", help="give it a tag at once")


def note_of(args: argparse.Namespace) -> Note:
    return Note(message=args.message, author=args.author, command=this_command())


def this_command() -> str:
    """The command line as it is recorded: passwords in URLs are left out."""
    return command_line(["forebay", *sys.argv[1:]])[:COMMAND_LIMIT]


def tag_made(repository: Repository, made: Made, args: argparse.Namespace) -> None:
    """Give a new version the tag that was asked for."""
    if args.tag:
        snapshot = made.snapshot
        repository.tag(f"{snapshot.dataset}@{snapshot.commit.id.hex()}", args.tag)


def report_made(made: Made, args: argparse.Namespace, more: dict[str, Any] | None = None) -> None:
    """Say which version came out."""
    if args.json:
        facts = {"new_pages": made.new_pages, "new_bytes": made.new_bytes, "unchanged": made.unchanged}
        frame.emit_json({**snapshot_document(made.snapshot), **facts, **(more or {})})
        return
    snapshot = made.snapshot
    commit = snapshot.commit
    size = f"{amounts.format_count(commit.entry_count)} entries, {amounts.format_size(commit.size_bytes)}"
    if made.unchanged:
        print(f"{snapshot.version_name} ({commit.short_id}) has this content already: {size}; nothing was changed")
    else:
        print(
            f"{snapshot.version_name} ({commit.short_id}) on {args.branch if 'branch' in args else snapshot.ref}: {size};"
            f" {amounts.format_size(made.new_bytes)} of metadata are new"
        )


# --- Showing versions. -------------------------------------------------------------------------------------------


def commit_document(commit: Commit) -> dict[str, Any]:
    """A commit as JSON."""
    return {
        "dataset": commit.dataset,
        "id": commit.id.hex(),
        "parents": [parent.hex() for parent in commit.parents],
        "time": time_of(commit).isoformat(),
        "author": commit.author,
        "message": commit.message,
        "command": commit.command,
        "entries": commit.entry_count,
        "bytes": commit.size_bytes,
    }


def snapshot_document(snapshot: Snapshot) -> dict[str, Any]:
    """A version as JSON; `version` is its number, null for a commit without one."""
    return {**commit_document(snapshot.commit), "name": snapshot.version_name, "version": snapshot.number or None}


def time_of(commit: Commit) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(commit.time_ms / 1000, datetime.UTC)


def when(commit: Commit) -> str:
    return time_of(commit).strftime("%Y-%m-%d %H:%M:%S")


def refs_by_commit(record: DatasetRecord) -> dict[bytes, list[str]]:
    """The branches and tags at each commit, as people are shown them; the tags of archives are not among them."""
    found: dict[bytes, list[str]] = {}
    for name, commit_id in sorted(record.branches.items()):
        found.setdefault(commit_id, []).append(name)
    for name, commit_id in visible_tags(record).items():
        found.setdefault(commit_id, []).append(f"tag: {name}")
    return found


def visible_tags(record: DatasetRecord) -> dict[str, bytes]:
    return {name: at for name, at in sorted(record.tags.items()) if not name.startswith(TAG_PREFIX)}


def percentage(text: str) -> float:
    """A fraction from `10%` or `0.1`, for argparse."""
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a percentage nor a fraction") from None
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not above 0% and at most 100%")
    return value


def confirm(question: str, *, yes: bool) -> None:
    """Go on only if the person agrees. Raises UsageError if nobody can be asked, or the answer is no."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise UsageError(f"{question} Nobody can be asked here", remedy="say --yes")
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise UsageError("nothing was changed")
