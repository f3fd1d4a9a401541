"""Holds: leases on commits, kept alive while something uses them, and the handshake with gc.

A lease alone is not enough: gc may have decided before the lease was there. The rule, of which docs/design/0003-snapshot-gc.md
has the reasons and the crash table: **first** write the lease, **then** read the state of gc. If gc is idle, every later run
sees the lease. If it is not, touch every page that is going to be relied on: a touched page cannot be swept
by that run, and a page that is missing already is noticed now and not in the middle of a training.
"""

import getpass
import itertools
import os
import secrets
import socket
import threading
from collections.abc import Iterator
from types import TracebackType

from ..errors import MetadataUnavailable, RefNotFound
from .commits import Commit
from .metastore import CommitId, GcState, LeaseRecord, MetaStore
from .pages import LEAF, PART, ROOT, PageId, missing_page
from .reader import PageReader

DEFAULT_TTL_S = 600.0
# A store that is away must not keep a mount from ending: then the lease expires by itself.
RELEASE_TIMEOUT_S = 5.0
_TOUCH_PAGES = 5000


class Hold:
    """A lease on a commit (None: only on the pages being written), renewed by a thread of its own until `release`.

    A context manager. `lost` tells that the lease lapsed although it was renewed: the store was away for longer than `ttl_s`.
    """

    def __init__(
        self,
        meta: MetaStore,
        dataset: str,
        commit: CommitId | None,
        *,
        purpose: str,
        what: str,
        ttl_s: float = DEFAULT_TTL_S,
    ) -> None:
        self._meta = meta
        self._ttl_s = ttl_s
        record = LeaseRecord(
            id=secrets.token_hex(12),
            dataset=dataset,
            commit=commit,
            purpose=purpose,
            what=what,
            owner=user_name(),
            host=socket.gethostname(),
            pid=os.getpid(),
        )
        self.lease = meta.put_lease(record, ttl_s)
        self._state_after_lease: GcState = meta.gc_state()
        self.lost = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep_alive, name="forebay-lease", daemon=True)
        self._thread.start()

    def __enter__(self) -> "Hold":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def release(self) -> None:
        """End the hold; gc may collect what nothing else reaches. While the store is away, it is left to expire after a few seconds."""
        self._stop.set()
        # In the middle of a renewal that waits for the store it ends by itself, at the deadline of that call.
        self._thread.join(RELEASE_TIMEOUT_S)
        try:
            self._meta.drop_lease(self.lease.id, timeout_s=RELEASE_TIMEOUT_S)
        except MetadataUnavailable:
            pass  # it expires by itself, and the caller is on its way out: nothing better can be done

    def gc_interfered(self) -> bool:
        """Whether a run of gc may have not seen this lease, or seen it lapse."""
        if self.lost or not self._meta.renew_lease(self.lease.id, self._ttl_s):
            return True
        return self._state_after_lease.phase != "idle" or self._meta.gc_state() != self._state_after_lease

    def secure(self, reader: PageReader, root: PageId) -> None:
        """Returns when no run of gc can sweep any page of this version. Raises PageCorrupt when one is missing."""
        if self.gc_interfered():
            touch_version(self._meta, reader, root)

    def secure_commit(self, reader: PageReader, commit: Commit) -> None:
        """`secure` for a commit that was there before the lease. Raises RefNotFound when gc took it in between."""
        data = self._meta.get_commits([commit.id]).get(commit.id)
        if data is None:
            raise RefNotFound(f"{commit.dataset}@{commit.short_id} has just been collected by gc")
        if self.gc_interfered():
            # Stored anew: a sweep that is under way either finds it used, or has deleted it just before.
            self._meta.put_commit(commit.id, commit.dataset, data)
            touch_version(self._meta, reader, commit.root)

    def _keep_alive(self) -> None:
        while not self._stop.wait(self._ttl_s / 4):
            try:
                if not self._meta.renew_lease(self.lease.id, self._ttl_s) and not self._stop.is_set():
                    self.lost = True
                    # Made anew, so that at least from now on gc sees it; who relies on it finds `lost`.
                    self._meta.put_lease(self.lease, self._ttl_s)
            except MetadataUnavailable:
                continue  # tried again in a quarter of the time to live; `lost` is set when that was too late


def page_ids(reader: PageReader, root: PageId) -> Iterator[tuple[PageId, int]]:
    """(id, kind) of all pages of a version, each index page before those below it."""
    yield root, ROOT
    for part in reader.parts(root):
        yield part.id, PART
        for ref in reader.part_refs(part):
            yield ref.id, LEAF


def touch_version(meta: MetaStore, reader: PageReader, root: PageId) -> None:
    """Mark all pages of a version as in use now. Raises PageCorrupt when one is missing."""
    pages = page_ids(reader, root)
    while some := dict(itertools.islice(pages, _TOUCH_PAGES)):
        for name in meta.touch_pages(list(some)):
            raise missing_page(name, some[name])


def user_name() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"
