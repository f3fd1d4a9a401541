"""Show what is mounted, what is cached, and how fast: every mount of this user, and processes that hold a cache.

With --watch it is shown again every two seconds, with rates. Exit status is 0 also when nothing is mounted; a mount whose
process does not answer is shown as such.
"""

import argparse
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from .. import amounts, config
from ..client import registry
from ..client.control import Control
from ..errors import DaemonUnreachable
from . import frame

WATCH_INTERVAL_S = 2.0
ANSWER_TIMEOUT_S = 5.0
ASKED_AT_ONCE = 64
_CLEAR = "\x1b[H\x1b[2J"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("mountpoint", nargs="?", metavar="PATH|SOURCE", help="only this one")
    parser.add_argument("--watch", action="store_true", help=f"show again every {WATCH_INTERVAL_S:.0f} s, with rates")
    frame.add_json(parser, "answer as one JSON document (with --watch one per line)")
    frame.add_settings(parser, "cache-dir", "cache-name", "endpoint-url", "profile", "meta-url")


def run(args: argparse.Namespace, settings: config.Settings) -> int:
    before: dict[str, Mapping[str, Any]] = {}
    while True:
        found = collect(args.mountpoint, settings)
        if args.json:
            frame.emit_json(found)
        else:
            text = "\n\n".join(_shown(one, before.get(one["id"])) for one in (*found["mounts"], *found["holders"]))
            print((_CLEAR if args.watch and sys.stdout.isatty() else "") + (text or "nothing is mounted"), flush=True)
        if not args.watch:
            return 0
        before = {one["id"]: one for one in (*found["mounts"], *found["holders"])}
        time.sleep(WATCH_INTERVAL_S)


def collect(wanted: str | None, settings: config.Settings) -> dict[str, list[dict[str, Any]]]:
    """The status of every process (or the one behind `wanted`): {"mounts": [...], "holders": [...]}."""
    if wanted is not None:
        from . import target

        found = target.find(wanted, settings)
        found.control()  # raises if nobody holds it
        entries = [found.entry] if found.entry is not None else []
    else:
        entries = registry.entries()
    answers: dict[str, list[dict[str, Any]]] = {"mounts": [], "holders": []}
    # All at once, so that those that hang cost one time-out together.
    with ThreadPoolExecutor(max(min(len(entries), ASKED_AT_ONCE), 1)) as threads:
        for entry, answer in zip(entries, threads.map(_ask, entries), strict=True):
            answers["mounts" if entry.role == "mount" else "holders"].append(answer)
        if wanted is None:
            answers["mounts"] += _dead_mounts({entry.mountpoint for entry in entries}, threads)
    return answers


def _ask(entry: registry.Entry) -> dict[str, Any]:
    known: dict[str, Any] = {
        "id": entry.id,
        "role": entry.role,
        "pid": entry.pid,
        "source": entry.source,
        "mountpoint": entry.mountpoint,
        "cache_folders": list(entry.cache_folders),
        "log_file": entry.log_file,
        "metrics_port": entry.metrics_port,
        "version": entry.version,
    }
    control = Control(entry.socket, timeout_s=ANSWER_TIMEOUT_S)
    try:
        return {**known, **control.get("status"), "state": "serving", "sampled_s": time.monotonic()}
    except DaemonUnreachable as error:
        return known | {"state": "unreachable", "reason": error.message}
    finally:
        control.close()


def _dead_mounts(served: set[str | None], threads: ThreadPoolExecutor) -> list[dict[str, Any]]:
    """Mounts of ours that nobody in the registry serves, and that do not answer: their process died."""
    from ..fuse_mount.mount_table import mounts
    from ..fuse_mount.mountpoint import probe

    found = [mount for mount in mounts() if mount.is_forebay and mount.mountpoint not in served]
    states = threads.map(lambda mount: probe(mount.mountpoint), found)
    return [
        {
            "id": mount.mountpoint,
            "role": "mount",
            "pid": None,
            "source": mount.source,
            "mountpoint": mount.mountpoint,
            "state": state,
            "reason": f"its process has died or hangs: forebay umount {mount.mountpoint}",
        }
        # One that answers belongs to another user, or to a process with another runtime folder.
        for mount, state in zip(found, states, strict=True)
        if state != "alive"
    ]


def _shown(one: Mapping[str, Any], before: Mapping[str, Any] | None) -> str:
    """`describe`, also of a process whose Forebay is another one: it goes on when this one is installed over it."""
    try:
        return describe(one, before)
    except (LookupError, TypeError):
        where = f" at {one['mountpoint']}" if one["mountpoint"] else f" ({one['role']})"
        return (
            f"{one['source']}{where} (process {one['pid']}) serves, but with another Forebay than this one ({one['version']})\n"
            f"  `forebay status --json` shows what it says; the next mount uses this one"
        )


def describe(one: Mapping[str, Any], before: Mapping[str, Any] | None) -> str:
    """One process for people; with an earlier status also rates."""
    where = f" at {one['mountpoint']}" if one["mountpoint"] else f" ({one['role']})"
    if one["state"] != "serving":
        return f"{one['source']}{where}: {one['state']}\n  {one['reason']}"
    cache, lines = one["cache"], []
    transport = f", {one['mount']['transport']}" if one["mount"] else ""
    up = amounts.format_duration(one["up_s"])
    lines.append(f"{one['source']}{where} (process {one['pid']}, up {up}{transport})")
    for tier in cache["tiers"]:
        lines.append(_tier(tier))
    lines.append("  reads   " + _reads(cache))
    if before is not None and before.get("state") == "serving":
        lines.append("  now     " + _rates(one, before))
    lines.append("  fetched " + _fetched(cache))
    lines += _writes(one.get("write"))
    lines += _names(one["view"])
    lines += [f"  store   {line}" for store in one["stores"] for line in _store(store)]
    if one["metrics_port"]:
        lines.append(f"  metrics port {one['metrics_port']}")
    if cache["pins"]:
        lines.append(f"  pinned  {amounts.format_size(cache['pinned_bytes'])} by {cache['pins']} leases")
    lines += [f"  job     {_job(job)}" for job in one["jobs"] if job["state"] == "running"]
    errors = {**cache["errors"], **(one["mount"]["errors"] if one["mount"] else {})}
    if errors:
        lines.append("  errors  " + ", ".join(f"{kind}: {count}" for kind, count in errors.items()))
    lines += [f"  note    {note}" for note in one["notes"]]
    return "\n".join(lines)


def _tier(tier: Mapping[str, Any]) -> str:
    share = tier["used_bytes"] / tier["capacity_bytes"] if tier["capacity_bytes"] else 0
    text = (
        f"  {tier['name']:<7} {amounts.format_size(tier['used_bytes'])} of {amounts.format_size(tier['capacity_bytes'])}"
        f" ({share:.0%}), {amounts.format_count(tier['entries'])} entries, {tier['folder']}"
    )
    if tier["corrupt"]:
        text += f", {tier['corrupt']} found damaged"
    return text + (f"\n          out of service: {tier['reason']}" if tier["reason"] else "")


def hits_of(cache: Mapping[str, Any]) -> tuple[int, int]:
    """(reads answered from the cache, all reads)."""
    hits: int = cache["ram_hits"] + cache["ssd_hits"] + cache["memory_hits"] + cache["tier_hits"]
    return hits, hits + cache["misses"]


def _reads(cache: Mapping[str, Any]) -> str:
    hits, reads = hits_of(cache)
    if not reads:
        return "none yet"
    return (
        f"{amounts.format_count(reads)}, {amounts.format_size(cache['asked_bytes'])}; {hits / reads:.1%} from the cache"
        f" (ram {cache['ram_hits'] / reads:.1%}, ssd {(cache['ssd_hits'] + cache['tier_hits']) / reads:.1%}),"
        f" {amounts.format_count(cache['misses'])} waited for the store"
    )


def _rates(one: Mapping[str, Any], before: Mapping[str, Any]) -> str:
    elapsed_s = max(one["sampled_s"] - before["sampled_s"], 0.001)
    (hits, reads), (hits_before, reads_before) = hits_of(one["cache"]), hits_of(before["cache"])
    new_reads = reads - reads_before
    fetched = one["cache"]["fetched_bytes"] - before["cache"]["fetched_bytes"]
    return (
        f"{amounts.format_rate((one['cache']['asked_bytes'] - before['cache']['asked_bytes']) / elapsed_s)} read"
        f" ({new_reads / elapsed_s:.0f}/s, {(hits - hits_before) / new_reads if new_reads else 1:.1%} from the cache),"
        f" {amounts.format_rate(fetched / elapsed_s)} from the store"
    )


def _fetched(cache: Mapping[str, Any]) -> str:
    asked, text = cache["asked_bytes"], f"{amounts.format_size(cache['fetched_bytes'])} in {cache['fetches']} requests"
    if asked and cache["fetched_bytes"]:
        text += f", {cache['fetched_bytes'] / asked:.2f} x what was read"
    if cache["readahead_bytes"]:
        wasted = cache["readahead_wasted_bytes"]
        text += f"; {amounts.format_size(cache['readahead_bytes'])} ahead, {amounts.format_size(wasted)} of it unread"
    return text


def _writes(write: Mapping[str, Any] | None) -> list[str]:
    """What was written and is on its way to the bucket."""
    if write is None:
        return []
    counts, waits = write["counts"], write["waits"]
    if write["dirty_files"] or write["doomed"]:
        dirty = f"{amounts.format_count(write['dirty_files'])} files ({amounts.format_size(write['dirty_bytes'])}) not in the bucket yet"
        if write["oldest_age_s"]:
            dirty += f", the oldest for {amounts.format_duration(round(write['oldest_age_s'], 1))}"
        if write["doomed"]:
            dirty += f", {amounts.format_count(write['doomed'])} objects to delete"
        if write["uploading"]:
            dirty += f", {amounts.format_count(write['uploading'])} being sent"
    else:
        dirty = "all in the bucket"
    if write["writeback_by"]:
        dirty += f"; the writeback is done by {write['writeback_by']}"
    lines = [f"  writes  {dirty}"]
    if write["stale_s"]:
        since = amounts.format_duration(round(write["stale_s"], 1))
        lines.append(
            f"  writes  {write['records']} does not answer since {since}: names are served as they were last known"
        )
    sent = f"{amounts.format_count(counts['files'])} files ({amounts.format_size(counts['sent_bytes'])})"
    if counts["copied_bytes"]:
        sent += f", {amounts.format_size(counts['copied_bytes'])} copied by the store"
    if write["deleted"]:
        sent += f", {amounts.format_count(write['deleted'])} objects deleted"
    lines.append(f"  sent    {sent}")
    room = write["tier_free_bytes"]
    free = f", {amounts.format_size(room)} free" if room is not None else ", which does not say how much room it has"
    kept = f"{amounts.format_size(write['dirty_bytes'] + write['held_bytes'])} in {write['tier']}{free}"
    lines.append(f"  kept    {kept}; records in {write['records']}")
    if write["tier_trouble"]:
        since = amounts.format_duration(round(write["tier_trouble_s"], 1))
        lines.append(f"  kept    writers are refused since {since}: {write['tier_trouble']}")
    if waits["count"]:
        waited = f"{amounts.format_count(waits['count'])} writes waited for room, {amounts.format_duration(round(waits['seconds'], 1))} together"
        if waits["refused"]:
            waited += f", {amounts.format_count(waits['refused'])} of them in vain (ENOSPC)"
        lines.append(f"  waits   {waited}" + (f"; {waits['now']} wait now" if waits["now"] else ""))
    if counts["conflicts"]:
        lines.append(f"  writes  {counts['conflicts']} conflicts with changes by others (see the log)")
    if write["paused"]:
        lines.append(f"  writes  waiting: {write['paused']}")
    lines += [f"  failure {failure}" for failure in write["failures"][:3]]
    if len(write["failures"]) > 3:
        lines.append(f"  failure and {len(write['failures']) - 3} more: forebay writeback list")
    return lines


def _names(view: Mapping[str, Any]) -> list[str]:
    """What is known of the names of a live bucket; a snapshot knows all of its names."""
    if "entries_known" not in view:
        return []
    lines = []
    if view["entries_known"]:
        lines.append(
            f"  names   {amounts.format_count(view['entries_known'])} in {amounts.format_count(view['folders_known'])} folders"
            f" known, {amounts.format_size(view['listing_bytes'])}"
        )
    if view["stale_since_s"] is not None:
        ago = amounts.format_duration(max(time.time() - view["stale_since_s"], 0))
        lines.append(f"  names   are served as they were last known, since {ago}: {view['stale_reason']}")
    if view["skipped"]:
        reasons = ", ".join(f"{count} with {reason}" for reason, count in view["skipped"].items())
        lines.append(f"  hidden  keys that no path can name: {reasons}; such as {view['skipped_examples'][0]}")
    return lines


def _store(store: Mapping[str, Any]) -> list[str]:
    lines = []
    if store["skipped"]:
        reasons = ", ".join(f"{count} ({reason})" for reason, count in store["skipped"].items())
        lines.append(f"{store['id']}: not shown: {reasons}")
    if store["down_since_s"] is not None:
        lines.append(
            f"{store['id']} is down since {amounts.format_duration(store['down_for_s'])}: {store['down_reason']}"
        )
    elif store["errors"]:
        lines.append(f"{store['id']}: " + ", ".join(f"{kind}: {count}" for kind, count in store["errors"].items()))
    return lines


def _job(job: Mapping[str, Any]) -> str:
    progress = job["progress"]
    done = f", {amounts.format_count(progress['objects_done'])} objects done" if "objects_done" in progress else ""
    return f"{job['kind']} {job['what']} ({job['id']}){done}"
