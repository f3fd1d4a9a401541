"""The names of a live bucket below a prefix: folder listings of the under store, cached for `metadata_ttl_s`.

**How a name is found.** In the folder's listing if it is known and fresh. Else the first page of the folder is asked
for, which is the whole of most folders: one request answers this and all other names in it. A folder that does not fit
a page is *large*: a name in it costs one small request (a listing of keys that start with the name), until it was asked
FULL_LOAD_AFTER times; then it is listed whole in the background, page by page. Opening a folder lists it whole.

**Large folders in use** are listed again ahead of time, so that their users do not fall back to a request for each name
whenever the TTL has passed: from REFRESH_LOADS times the duration of a load before its end, if the TTL has room for that.

**What may be believed.** An answer is as old as the moment at which its request *began*; after `metadata_ttl_s` it is
asked again, so a change in the bucket is seen at most that much later. Names that are absent are kept likewise.

**Outages.** A listing that fails half-way changes nothing. While the store cannot be asked, what is known is served
on, however old, and counted as stale; what is not known is the store's error, after the store's bounded wait. Never is
an outage an empty folder or a missing name. For STALE_GRACE_S after a failure it is not asked again for known names.

**Bounds.** Listings take at most `max_listing_bytes`; the least recently used are dropped. Single names are bounded by
MAX_NAMES. Of each question there is one request at a time, however many ask; `close` ends those under way.

Laying writes over it (dirty, renamed and deleted paths) is the work of whoever holds a Namespace: the listing of a
folder is immutable, so an overlay can be merged with it once per listing and compared by identity afterwards.
`expire(prefix)` makes the next question ask the store, after a writeback for example.
"""

import asyncio
import contextlib
import logging
import math
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from ...errors import StoreError
from ...tiers.understore import UnderStore
from ...tiers.version import ObjectVersion
from .flights import Flights
from .folder_listing import IS_ABSENT, Entry, FolderListing
from .listing_builder import ListingBuilder
from .states import FolderState, Found, Known, KnownName
from .stats import NamespaceStats

logger = logging.getLogger(__name__)

PAGE_ENTRIES = 1000
NAME_PAGE_ENTRIES = 8
FULL_LOAD_AFTER = 64
MAX_NAMES = 50_000
MAX_BACKGROUND_LOADS = 4
STALE_GRACE_S = 1.0
EVICT_DOWN_TO = 0.9
REFRESH_LOADS = 2
IN_THREAD_ABOVE_ENTRIES = 20_000


@dataclass(frozen=True, slots=True)
class NamespaceOptions:
    """`metadata_ttl_s` may be infinite: names are then asked for once. `max_listing_bytes` bounds what is kept."""

    metadata_ttl_s: float = 60.0
    max_listing_bytes: int = 512 * 1024 * 1024


class Namespace:
    """For one event loop; `peek` may be called from any thread. The store stays the caller's."""

    def __init__(
        self,
        store: UnderStore,
        prefix: str,
        options: NamespaceOptions,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`prefix` is empty or ends in a slash; nothing is asked before the first call."""
        if prefix and not prefix.endswith("/"):
            raise ValueError(f"prefix {prefix!r} does not end in a slash")
        self.prefix = prefix
        self.options = options
        self._store = store
        self._clock = clock
        self._states: dict[str, FolderState] = {}
        self._names: OrderedDict[tuple[str, bytes], None] = OrderedDict()
        self._registry_lock = threading.Lock()
        self._listing_bytes = 0
        self._loads: Flights[Known] = Flights()
        self._first_pages: Flights[bool] = Flights()
        self._singles: Flights[KnownName] = Flights()
        self._excused_until_s = 0.0
        self._stale_since_s: float | None = None
        self._stale_reason: str | None = None
        self._counts: Counter[str] = Counter()
        self._loop: asyncio.AbstractEventLoop | None = None

    # --- Any thread. ------------------------------------------------------------------------------------------

    def peek(self, state: FolderState, name: bytes) -> Found | None:
        """What is known and may be believed of `name`, without I/O; None when `lookup` must be asked."""
        now_s = self._clock()
        state.used_s = now_s
        known = state.known
        single = state.names.get(name) if state.names else None
        if single is not None and (known is None or known.as_of_s < single.as_of_s):
            left_s = single.until_s - now_s
            if left_s > 0 or self._is_excused(now_s):
                return Found(None, IS_ABSENT, single.entry, max(left_s, 0.0))
        elif known is not None:
            left_s = known.until_s - now_s
            if now_s >= known.refresh_from_s and state.refresh_asked_of is not known:
                self._refresh_ahead(state, known)
            if left_s > 0 or self._is_excused(now_s):
                return Found(known.listing, known.listing.find(name), None, max(left_s, 0.0))
        return None

    def fresh_listing(self, state: FolderState) -> Known | None:
        """The listing if it may be believed now."""
        known = state.known
        if known is None:
            return None
        now_s = self._clock()
        return known if now_s < known.until_s or self._is_excused(now_s) else None

    def ttl_s(self, known: Known) -> float:
        """For how long a listing may still be believed; 0 when it is stale."""
        return max(known.until_s - self._clock(), 0.0)

    def version(self, key: str, entry: Entry) -> ObjectVersion:
        return ObjectVersion(self._store.id, key, entry.etag, entry.size)

    def stats(self) -> NamespaceStats:
        skipped: Counter[str] = Counter()
        examples: list[str] = []
        folders = entries = 0
        for state in list(self._states.values()):
            known = state.known
            if known is None:
                continue
            folders += 1
            entries += len(known.listing)
            skipped.update(known.listing.skipped.counts)
            if len(examples) < 10:
                examples += known.listing.skipped.examples
        counts = self._counts
        return NamespaceStats(
            folders_known=folders,
            entries_known=entries,
            listing_bytes=self._listing_bytes,
            names_known=len(self._names),
            listings_loaded=counts["listings_loaded"],
            listings_unchanged=counts["listings_unchanged"],
            listing_pages=counts["listing_pages"],
            name_requests=counts["name_requests"],
            loads_in_flight=len(self._loads),
            stale_answers=counts["stale_answers"],
            stale_since_s=self._stale_since_s,
            stale_reason=self._stale_reason,
            evicted=counts["evicted"],
            skipped=dict(skipped),
            skipped_examples=tuple(examples[:10]),
        )

    def hold(self, prefix: str) -> FolderState:
        """The state of the folder `prefix`, kept for as long as it is held. Give it back with `release`."""
        with self._registry_lock:
            state = self._states.get(prefix)
            if state is None:
                state = self._states[prefix] = FolderState(prefix)
            state.holders += 1
            return state

    def release(self, state: FolderState) -> None:
        with self._registry_lock:
            state.holders -= 1
            self._forget_if_empty(state)

    def _refresh_ahead(self, state: FolderState, known: Known) -> None:
        """Have a large folder listed again, once, since it is used and its time is nearly over."""
        state.refresh_asked_of = known  # and not `known` changed: only the event loop does that
        loop = self._loop
        if loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop was just closed: nobody will ask any more
                loop.call_soon_threadsafe(self._load_in_background, state)

    # --- On the event loop. -------------------------------------------------------------------------------------

    async def lookup(self, state: FolderState, name: bytes) -> Found:
        """What there is under `name`, asked if need be. Raises StoreError when it is not known and cannot be asked."""
        found = self.peek(state, name)
        if found is not None:
            return found
        self._loop = asyncio.get_running_loop()
        try:
            if not state.is_large and await self._first_pages.join(state.prefix, lambda: self._load_if_small(state)):
                known = state.known
                if known is not None:  # not dropped again for want of room
                    return Found(known.listing, known.listing.find(name), None, self.ttl_s(known))
            return await self._ask_name(state, name)
        except StoreError as error:
            return self._stale_name(state, name, error)

    async def listing(self, state: FolderState) -> Known:
        """The whole folder, fresh, or stale in an outage. Raises StoreError when it is not known and cannot be asked."""
        known = self.fresh_listing(state)
        if known is not None:
            return known
        self._loop = asyncio.get_running_loop()
        try:
            known = await self._loads.join(state.prefix, lambda: self._load(state))
            if known.as_of_s < state.expired_s:  # it was under way when it became too old
                known = await self._loads.join(state.prefix, lambda: self._load(state))
            return known
        except StoreError as error:
            known = state.known
            if known is None:
                raise
            self._note_stale(error)
            return known

    def expire(self, prefix: str) -> None:
        """What is known of this folder, or being asked at the moment, must be asked again; in an outage it still serves. From any thread."""
        state = self._states.get(prefix)
        if state is None:
            return
        state.expired_s = self._clock()
        if state.known is not None:
            state.known = state.known._replace(until_s=0.0)
        for name, single in list(state.names.items()):
            state.names[name] = single._replace(until_s=0.0)

    async def close(self) -> None:
        """End all requests under way. The store is not closed."""
        self._loop = None
        await self._loads.close()
        await self._first_pages.close()
        await self._singles.close()

    def _forget_if_empty(self, state: FolderState) -> None:
        """Drop a state that nobody holds and that says nothing; with the registry locked."""
        if state.holders == 0 and state.known is None and not state.names:
            self._states.pop(state.prefix, None)

    def _is_excused(self, now_s: float) -> bool:
        """Whether the store failed just now, so that what is known serves without asking."""
        return now_s < self._excused_until_s

    # Loading whole folders.

    def _load_in_background(self, state: FolderState) -> None:
        if self._loop is not None and len(self._loads) < MAX_BACKGROUND_LOADS:
            self._loads.begin(state.prefix, lambda: self._load(state))

    async def _load(self, state: FolderState) -> Known:
        as_of_s = self._clock()
        builder = ListingBuilder(state.prefix)
        token: str | None = None
        count = 0
        while True:
            page = await self._store.list_page(state.prefix, delimiter="/", token=token, limit=PAGE_ENTRIES)
            self._counts["listing_pages"] += 1
            builder.add(page)
            count += len(page.keys) + len(page.prefixes)
            token = page.next_token
            if token is None:
                break
        listing = await asyncio.to_thread(builder.finish) if count > IN_THREAD_ABOVE_ENTRIES else builder.finish()
        return self._keep(state, listing, as_of_s)

    async def _load_if_small(self, state: FolderState) -> bool:
        """Ask for the first page; whether it was all. If not, the folder is large from now on."""
        as_of_s = self._clock()
        page = await self._store.list_page(state.prefix, delimiter="/", limit=PAGE_ENTRIES)
        self._counts["listing_pages"] += 1
        if page.next_token is not None:
            state.is_large = True
            return False
        builder = ListingBuilder(state.prefix)
        builder.add(page)
        self._keep(state, builder.finish(), as_of_s)
        return True

    def _until_s(self, state: FolderState, as_of_s: float) -> float:
        """Until when an answer to what was asked at `as_of_s` may be believed."""
        return as_of_s + self.options.metadata_ttl_s if as_of_s >= state.expired_s else 0.0

    def _keep(self, state: FolderState, listing: FolderListing, as_of_s: float) -> Known:
        """Make a complete listing the known one. An equal one keeps the old object, and so all that is built on it."""
        self._note_answer()
        before = state.known
        if before is not None and before.as_of_s > as_of_s:
            return before  # a load that began later was quicker
        if before is not None and before.listing.is_same(listing):
            listing = before.listing
            self._counts["listings_unchanged"] += 1
        else:
            self._log_skipped(state.prefix, listing)
            self._listing_bytes += listing.size_bytes - (before.listing.size_bytes if before is not None else 0)
        self._counts["listings_loaded"] += 1
        until_s = self._until_s(state, as_of_s)
        state.load_s = self._clock() - as_of_s
        ahead_s = state.load_s * REFRESH_LOADS
        state.is_large = len(listing) >= PAGE_ENTRIES
        has_room = state.is_large and 2 * ahead_s < self.options.metadata_ttl_s < math.inf
        known = state.known = Known(listing, as_of_s, until_s, until_s - ahead_s if has_room else math.inf)
        state.name_requests = 0
        state.refresh_asked_of = None
        for name in state.names:
            self._names.pop((state.prefix, name), None)
        state.names.clear()
        state.used_s = self._clock()
        self._states[state.prefix] = state
        self._evict(state)
        return known

    def _log_skipped(self, prefix: str, listing: FolderListing) -> None:
        if listing.skipped.counts:
            reasons = ", ".join(f"{count} with {reason}" for reason, count in listing.skipped.counts.items())
            logger.warning(
                "folder %r: keys that are not shown: %s (such as %s)", prefix, reasons, listing.skipped.examples[0]
            )

    def _evict(self, newest: FolderState) -> None:
        """Above the bound, drop the least recently used listings until there is some room; the newest stays."""
        bound_bytes = self.options.max_listing_bytes
        if self._listing_bytes <= bound_bytes:
            return
        for state in sorted(self._states.values(), key=lambda state: state.used_s):
            if self._listing_bytes <= bound_bytes * EVICT_DOWN_TO:
                return
            if state.known is None or state is newest:
                continue
            self._listing_bytes -= state.known.listing.size_bytes
            state.known = state.refresh_asked_of = None
            self._counts["evicted"] += 1
            with self._registry_lock:
                self._forget_if_empty(state)

    # Single names.

    async def _ask_name(self, state: FolderState, name: bytes) -> Found:
        state.name_requests += 1
        # A listing that is too old when it is complete would help nobody.
        if state.name_requests >= FULL_LOAD_AFTER and state.load_s < self.options.metadata_ttl_s:
            self._load_in_background(state)
        single = await self._singles.join((state.prefix, name), lambda: self._single(state, name))
        return Found(None, IS_ABSENT, single.entry, max(single.until_s - self._clock(), 0.0))

    async def _single(self, state: FolderState, name: bytes) -> KnownName:
        as_of_s = self._clock()
        self._counts["name_requests"] += 1
        entry = await self._entry(state.prefix, name)
        self._note_answer()
        single = KnownName(entry, as_of_s, self._until_s(state, as_of_s))
        if state.known is None or state.known.as_of_s < as_of_s:
            self._keep_name(state, name, single)
        return single

    def _keep_name(self, state: FolderState, name: bytes, single: KnownName) -> None:
        state.names[name] = single
        self._states[state.prefix] = state
        key = (state.prefix, name)
        self._names[key] = None
        self._names.move_to_end(key)
        while len(self._names) > MAX_NAMES:
            (prefix, oldest), _ = self._names.popitem(last=False)
            if (other := self._states.get(prefix)) is not None:
                other.names.pop(oldest, None)
                with self._registry_lock:
                    self._forget_if_empty(other)

    async def _entry(self, prefix: str, name: bytes) -> Entry | None:
        """One name by small requests: the keys that start with it, and if those go on, those below it as a folder."""
        key = prefix + name.decode("utf-8", "surrogateescape")
        page = await self._store.list_page(key, delimiter="/", limit=NAME_PAGE_ENTRIES)
        if f"{key}/" in page.prefixes:
            return Entry(name, True)
        if page.next_token is not None:
            below = await self._store.list_page(f"{key}/", limit=1)
            if below.keys or below.prefixes:
                return Entry(name, True)
        for row, found in enumerate(page.keys):
            if found == key:
                return Entry(name, False, page.sizes[row], page.etags[row], page.mtimes_ns[row])
        return None

    # Outages.

    def _stale_name(self, state: FolderState, name: bytes, error: StoreError) -> Found:
        """What was known before the outage, or the outage."""
        known, single = state.known, state.names.get(name)
        if known is None and single is None:
            raise error
        self._note_stale(error)
        if known is not None and (single is None or known.as_of_s >= single.as_of_s):
            return Found(known.listing, known.listing.find(name), None, 0.0)
        assert single is not None
        return Found(None, IS_ABSENT, single.entry, 0.0)

    def _note_stale(self, error: StoreError) -> None:
        self._counts["stale_answers"] += 1
        self._excused_until_s = self._clock() + STALE_GRACE_S
        if self._stale_since_s is None:
            self._stale_since_s = time.time()
            self._stale_reason = error.message
            logger.warning("names are served as they were last known: %s", error.message)

    def _note_answer(self) -> None:
        if self._stale_since_s is not None:
            logger.info("the store answers again")
        self._stale_since_s = self._stale_reason = None
        self._excused_until_s = 0.0
