"""Warm the cache: fetch what is named, before anybody reads it, and say with a receipt what is here.

Works before any mount exists (the cache folder is warmed for the mount to come) and through a running mount, on the same
folder. What is present is not fetched again, so an interrupted prefetch goes on where it was. The exit status is 0 only
when everything that was asked for is present, 40 otherwise.

examples:
  forebay prefetch s3://bucket/images                          all of it
  forebay prefetch s3://bucket -f list.txt --pin --lease 24h   the paths in a list, held for a day
  forebay prefetch /mnt/images/train --to ram                  through a mount
  forebay prefetch s3://bucket --dry-run                       what would it cost?
  forebay prefetch s3://bucket --check                         is it all here?
"""

import argparse
import getpass
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from .. import amounts, config
from ..client.control import error_from
from ..errors import Incomplete, UsageError
from . import frame, progress, target

SETTINGS = (
    "cache-dir", "cache-name", "cache-size", "ram-dir", "ram-size", "free-space-ratio", "eviction", "eviction-ttl",
    "endpoint-url", "profile", "anonymous", "io-timeout", "max-connections", "log-level", "log-format", "meta-url",
)  # fmt: skip
DEFAULT_LEASE = "24h"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("targets", nargs="+", metavar="SOURCE|PATH", help=target.HELP)
    parser.add_argument(
        "-f", dest="list", metavar="LIST", help="file with one path a line below SOURCE (or full URLs); - is stdin"
    )
    parser.add_argument("--to", choices=("ram", "ssd"), help="tier to fill (default: the SSD tier)")
    parser.add_argument("--pin", action="store_true", help="hold what is fetched until the lease ends")
    parser.add_argument(
        "--lease", metavar="DURATION", help=f"how long to hold it (default: {DEFAULT_LEASE}); implies --pin"
    )
    parser.add_argument("--owner", default=None, help="who holds it (default: the user's name)")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--check", action="store_true", help="only say what is here; fetch nothing")
    what.add_argument("--dry-run", action="store_true", help="only say what it would cost")
    when = parser.add_mutually_exclusive_group()
    when.add_argument("--background", action="store_true", help="return at once; `forebay status` shows how far it is")
    when.add_argument("--wait", action="store_true", help="wait for the end (the default)")
    frame.add_json(parser, "print the receipt as one JSON document for each source")
    frame.add_settings(parser, *SETTINGS)


@dataclass
class Group:
    """What is asked of one source: the paths, and a target that says who holds it."""

    target: target.Target
    paths: list[str]


def run(args: argparse.Namespace, settings: config.Settings) -> int:
    from ..daemon.prefetching import PrefetchRequest

    lease_s = None
    if args.pin or args.lease:
        lease_s = amounts.parse_duration_s(args.lease or DEFAULT_LEASE)
    incomplete = []
    for group in _groups(args, settings):
        request = PrefetchRequest(
            paths=tuple(group.paths),
            to=args.to,
            lease_s=lease_s,
            owner=args.owner or getpass.getuser(),
            mode="check" if args.check else "plan" if args.dry_run else "run",
        )
        if args.background:
            _in_background(group, request.to_document() | {"source": group.target.source}, settings, as_json=args.json)
            continue
        with progress.show(f"prefetch {group.target.source}", quiet=args.json) as bar:
            document = request.to_document() | {"source": group.target.source}
            answer = _ask_holder(group, document, bar) if group.target.entry else None
            if answer is None:
                answer = _do_it_here(group.target.text, request, settings, bar)
        if args.json:
            frame.emit_json(answer)
        else:
            print("\n".join(_plan_lines(answer) if args.dry_run else _receipt_lines(answer)))
        if not answer.get("complete", True):
            incomplete.append(answer["source"])
    if incomplete:
        raise Incomplete(
            f"not everything of {', '.join(incomplete)} is present", remedy="the receipt says what is missing"
        )
    return 0


def _groups(args: argparse.Namespace, settings: config.Settings) -> list[Group]:
    """Targets of one source belong together; the list is of the one source that is named with it."""
    groups: dict[str, Group] = {}
    for text in args.targets:
        found = target.find(text, settings)
        groups.setdefault(found.source, Group(found, [])).paths.append(found.path)
    if args.list is not None:
        if len(groups) > 1:
            raise UsageError("-f belongs to one source, and several are named")
        (group,) = groups.values()
        bases = [path for path in group.paths if path] or [""]
        if len(bases) > 1:
            raise UsageError("-f belongs to one source or folder, and several are named")
        group.paths = list(_listed(args.list, group.target.source, bases[0]))
        if not group.paths:
            raise UsageError(f"the list {args.list} is empty")
    return list(groups.values())


def _listed(name: str, source: str, base: str) -> Iterator[str]:
    try:
        lines: Iterable[str]
        if name == "-":
            lines = list(sys.stdin)
        else:
            with open(name, encoding="utf-8", errors="surrogateescape") as file:
                lines = list(file)
    except OSError as error:
        raise UsageError(f"the list {name} cannot be read: {error.strerror}") from error
    for number, line in enumerate(lines, 1):
        path = line.rstrip("\r\n").removeprefix("\ufeff")
        if not path or path.startswith("#"):
            continue
        if "://" in path:
            if not path.startswith(source.rstrip("/") + "/"):
                raise UsageError(f"{name}, line {number}: {path} is not in {source}")
            path = path[len(source.rstrip("/")) + 1 :]
        elif base:
            path = f"{base}/{path}"
        yield path


def _ask_holder(group: Group, document: dict[str, Any], bar: progress.Progress) -> dict[str, Any] | None:
    """Through the process that holds the cache; leaving (Ctrl-C) cancels it there."""
    control = group.target.control()
    job: dict[str, Any] = {}
    for job in control.stream("prefetch", document):
        _show(job["progress"], bar)
    return _outcome(job)


def _outcome(job: dict[str, Any]) -> dict[str, Any]:
    if job["error"] is not None:
        raise error_from(job["error"])
    if job["outcome"] is None:
        raise Incomplete(f"the prefetch of {job['what']} was cancelled", remedy="run it again; what is present stays")
    outcome: dict[str, Any] = job["outcome"]
    return outcome


def _show(now: dict[str, Any], bar: progress.Progress) -> None:
    if now:
        bar.update(
            done=now["objects"],
            total=now["total_objects"],
            done_bytes=now["size_bytes"],
            total_bytes=now["total_bytes"],
        )


def _do_it_here(source: str, request: Any, settings: config.Settings, bar: progress.Progress) -> dict[str, Any]:
    """Nobody holds the cache: hold it for as long as it takes."""
    import asyncio

    from ..daemon import logs, prefetching, process
    from ..daemon.launch import Request

    logs.to_stderr(
        level="warning" if settings.is_default("log-level") else settings.log_level, form=settings.log_format
    )

    async def work() -> dict[str, Any]:
        asked = Request(source=source, mountpoint=None, settings=settings)
        async with process.hold(asked, role="prefetch", stopping=process.Stopping()) as service:
            return await prefetching.run(service, service.source, request, lambda now: _show(now, bar))

    return asyncio.run(work())


def _in_background(group: Group, document: dict[str, Any], settings: config.Settings, *, as_json: bool) -> None:
    """In the process that holds the cache, or in one that is started for it and ends by itself when done."""
    from ..client.control import Control
    from ..daemon import starting

    sockets: list[str] = []
    if group.target.entry is None:
        starting.start(group.target.text, None, settings, ready=lambda served: sockets.append(served["socket"]))
    control = Control(sockets[0]) if sockets else group.target.control()
    job = control.post("prefetch", document | {"background": True})
    control.close()
    if as_json:
        frame.emit_json(job)
    else:
        frame.message(f"prefetching {job['what']} in the background (job {job['id']}); see `forebay status`")


def _part(part: dict[str, Any]) -> str:
    return f"{amounts.format_count(part['objects'])} objects, {amounts.format_size(part['size_bytes'])}"


def _receipt_lines(receipt: dict[str, Any]) -> list[str]:
    asked = f"{amounts.format_count(receipt['asked_objects'])} objects, {amounts.format_size(receipt['asked_bytes'])}"
    lines = [
        f"{'complete' if receipt['complete'] else 'INCOMPLETE'}: {receipt['purpose'] or receipt['source']}",
        f"  asked     {asked}",
        f"  present   {amounts.format_count(receipt['present_objects'])} objects, "
        f"{amounts.format_size(receipt['present_bytes'])} ({receipt['present_fraction']:.1%})",
        f"    in ram  {_part(receipt['ram'])}",
        f"    on ssd  {_part(receipt['ssd'])}",
        f"  fetched   {amounts.format_size(receipt['fetched_bytes'])} in {amounts.format_count(receipt['requests'])} requests, "
        f"{amounts.format_duration(receipt['seconds'])}; {amounts.format_count(receipt['found_objects'])} objects were here before",
    ]
    if receipt["missing_objects"]:
        reasons = ", ".join(f"{reason}: {count}" for reason, count in receipt["missing_reasons"].items())
        missing = f"{amounts.format_count(receipt['missing_objects'])} objects, {amounts.format_size(receipt['missing_bytes'])}"
        lines.append(f"  missing   {missing} ({reasons})")
        lines += [f"    {one['path']}: {one['detail']}" for one in receipt["missing_examples"][:10]]
    lines += _not_found_lines(receipt)
    if receipt["pin"] is not None:
        pin = receipt["pin"]
        lines.append(f"  lease     {pin['id']} of {pin['owner']}, for {amounts.format_duration(pin['lease_s'])}")
    return lines


def _plan_lines(plan: dict[str, Any]) -> list[str]:
    lines = [
        f"plan for {plan['source']}, nothing is fetched yet",
        f"  asked     {amounts.format_count(plan['asked_objects'])} objects, {amounts.format_size(plan['asked_bytes'])}",
        f"    in ram  {_part(plan['ram'])}",
        f"    on ssd  {_part(plan['ssd'])}",
        f"  to fetch  {amounts.format_count(plan['fetch_objects'])} objects, {amounts.format_size(plan['fetch_bytes'])}",
        f"  room      {amounts.format_size(plan['room_bytes'])} in the {plan['to']} tier: "
        + ("it fits" if plan["fits"] else "IT DOES NOT FIT"),
    ]
    if plan["rate_problem"]:
        lines.append(f"  time      unknown: {plan['rate_problem']}")
    elif plan["estimated_s"] is not None:
        rate = f" at {amounts.format_rate(plan['rate_bytes_s'])}" if plan["rate_bytes_s"] else ""
        lines.append(f"  time      about {amounts.format_duration(plan['estimated_s'])}{rate}")
    return lines + _not_found_lines(plan)


def _not_found_lines(answer: dict[str, Any]) -> list[str]:
    count, examples = answer["not_found"]["count"], answer["not_found"]["examples"]
    if not count:
        return []
    return [f"  not there {amounts.format_count(count)} of the paths"] + [f"    {path}" for path in examples[:10]]
