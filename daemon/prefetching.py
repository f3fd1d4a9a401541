"""Prefetch and free as a Forebay process does them: paths of the source become object versions, the cache does the rest.

The same code runs behind the control socket of a mount and in a `forebay prefetch` that holds the cache itself.
"""

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ..cache import prefetch as cache_prefetch
from ..cache.prefetch import Prefetch, Progress, Wanted, make_plan
from ..cache.tier_set import TierName
from ..errors import ForebayError, ObjectNotFound, UsageError
from ..tiers.version import ObjectVersion
from .service import Service
from .sources import Source

log = logging.getLogger(__name__)

LOOKUPS_AT_ONCE = 64
COUNTED_PATHS = 16
MOST_EXAMPLES = 100

Report = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, kw_only=True)
class PrefetchRequest:
    """What is asked: paths of the source ("" for all of it), and how. `mode` "plan" and "check" fetch nothing to keep."""

    paths: tuple[str, ...] = ("",)
    to: TierName | None = None
    lease_s: float | None = None
    owner: str = ""
    mode: str = "run"

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> "PrefetchRequest":
        """As it came over the control socket. Raises UsageError for what makes no sense."""
        paths = document.get("paths", [""])
        if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
            raise UsageError("`paths` is not a list of texts")
        lease_s = document.get("lease_s")
        if lease_s is not None and not (isinstance(lease_s, int | float) and lease_s > 0):
            raise UsageError(f"a lease of {lease_s!r} seconds makes no sense")
        to, mode = document.get("to"), document.get("mode", "run")
        if to is not None and to != "ram" and to != "ssd":
            raise UsageError(f"there is no tier {to!r}", remedy="choose ram or ssd")
        if mode not in ("run", "plan", "check"):
            raise UsageError(f"there is no mode {mode!r}", remedy="choose run, plan or check")
        return cls(paths=tuple(paths), to=to, lease_s=lease_s, owner=str(document.get("owner", "")), mode=mode)

    def to_document(self) -> dict[str, Any]:
        return asdict(self) | {"paths": list(self.paths)}

    def describe(self, source: str) -> str:
        """In words: `s3://bucket: train, val and 3 more`."""
        if self.paths == ("",):
            return source
        more = f" and {len(self.paths) - 2} more" if len(self.paths) > 2 else ""
        return f"{source}: {', '.join(self.paths[:2])}{more}"


@dataclass
class NotFound:
    """Paths that were asked for and are not there; the first ones by name."""

    count: int = 0
    examples: list[str] = field(default_factory=list)

    def add(self, path: str) -> None:
        self.count += 1
        if len(self.examples) < MOST_EXAMPLES:
            self.examples.append(path)


@dataclass
class Totals:
    """How much is asked for in all, found out while the prefetch runs already.

    A prefetch streams what it is asked for, so it learns the total only at its end. For a progress bar with a time left,
    a second listing runs ahead of it; it is cheap beside the fetching. A long list of paths is not looked up twice.
    """

    objects: int | None = None
    size_bytes: int | None = None

    def added_to(self, now: Progress) -> dict[str, Any]:
        document = asdict(now)
        if self.objects is not None and self.size_bytes is not None:
            document |= {"total_objects": self.objects, "total_bytes": self.size_bytes}
            if now.rate_bytes_s > 0:
                document["eta_s"] = max(self.size_bytes - now.size_bytes, 0) / now.rate_bytes_s
        return document

    @contextlib.asynccontextmanager
    async def counted(self, source: Source, paths: Sequence[str]) -> AsyncIterator[None]:
        """Count for the time of the `with`, beside what happens in it."""
        counting = asyncio.create_task(self._count(source, paths))
        try:
            yield
        finally:
            counting.cancel()
            await asyncio.gather(counting, return_exceptions=True)

    async def _count(self, source: Source, paths: Sequence[str]) -> None:
        if len(paths) > COUNTED_PATHS:
            return
        objects = size_bytes = 0
        try:
            async for item in entries(source, paths, NotFound()):
                objects += 1
                size_bytes += item.version.size
        except ForebayError as error:
            log.debug("what is asked for cannot be counted, the prefetch will say why: %s", error)
            return
        self.objects, self.size_bytes = objects, size_bytes


async def run(service: Service, source: Source, request: PrefetchRequest, report: Report) -> dict[str, Any]:
    """Do it; the answer is the receipt (or the plan) as JSON, with `complete` and `not_found` in it.

    `report` gets the progress a few times a second. Raises the StoreError of a listing that fails.
    """
    not_found = NotFound()
    wanted = entries(source, request.paths, not_found)
    if request.mode == "plan":
        answer = (await make_plan(service.cache, wanted, to=request.to)).to_json()
        return answer | {"source": source.name.text, "not_found": asdict(not_found)}
    totals = Totals()
    prefetch = Prefetch(
        service.cache,
        to=request.to,
        lease_s=request.lease_s,
        owner=request.owner,
        purpose=request.describe(source.name.text),
        progress=lambda now: report(totals.added_to(now)),
    )
    async with totals.counted(source, request.paths):
        receipt = await (prefetch.check(wanted) if request.mode == "check" else prefetch.run(wanted))
    answer = receipt.to_json()
    answer["complete"] = answer["complete"] and not not_found.count
    return answer | {"source": source.name.text, "not_found": asdict(not_found)}


async def free(service: Service, source: Source, paths: Sequence[str], *, also_pinned: bool) -> dict[str, Any]:
    """Let go of what is cached of these paths; the answer says how much."""
    not_found = NotFound()
    freed = await cache_prefetch.free(service.cache, entries(source, paths, not_found), also_pinned=also_pinned)
    return asdict(freed) | {"source": source.name.text, "not_found": asdict(not_found)}


async def entries(source: Source, paths: Sequence[str], not_found: NotFound) -> AsyncIterator[Wanted]:
    """Every file at or below the paths, in their order. Single files are looked up many at a time."""
    ahead: deque[tuple[str, asyncio.Task[ObjectVersion | None]]] = deque()
    waiting = iter(paths)
    try:
        while True:
            while len(ahead) < LOOKUPS_AT_ONCE and (path := next(waiting, None)) is not None:
                ahead.append((path.strip("/"), asyncio.create_task(_version_of(source, path))))
            if not ahead:
                return
            path, lookup = ahead.popleft()
            version = await lookup
            if version is not None:
                yield Wanted(path, version)
                continue
            try:
                async for name, content in source.entries(path):
                    yield Wanted(name, content)
            except ObjectNotFound:
                not_found.add(path)
    finally:
        for _, lookup in ahead:
            lookup.cancel()
        await asyncio.gather(*(lookup for _, lookup in ahead), return_exceptions=True)


async def _version_of(source: Source, path: str) -> ObjectVersion | None:
    # A path that ends in a slash, and the root, can only be folders: nothing need be asked.
    return None if path == "" or path.endswith("/") else await source.version_of(path)
