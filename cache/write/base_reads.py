"""Reading files of which a part is still where it was: in the version in the under store that they were made from, their base.

Our own upload can overwrite that version at any moment, and says so only when it is committed. So a base that is gone is first
looked for among our uploads; only when none of them took its place it is really gone.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from ...errors import BaseGone, ForebayError, ObjectChanged, ObjectNotFound
from ...tiers.understore import Buffer
from .drafts import MAX_EXTENTS, Pieces
from .freshness import Freshness
from .open_files import OpenFile, OpenFiles
from .state import State
from .uploads import Uploads
from .writeback import Writeback

# What is fetched at once to fill a gap; and in how many intervals a file may be while it cannot be fetched.
FILL_BYTES = 4 * 1024 * 1024
FAR_TOO_MANY_EXTENTS = 16 * MAX_EXTENTS


@dataclass(slots=True)
class BaseReads:
    """`freshness` is that of shared records; `does_writeback` says whether uploads are ours to do, and to look into."""

    state: State
    files: OpenFiles
    uploads: Uploads
    writeback: Writeback
    freshness: Freshness | None
    does_writeback: Callable[[], bool]
    _filling: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def fetch(self, file: OpenFile, offset: int, size: int) -> Buffer:
        """Read a range, fetching what must come from the base. Raises StoreError kinds, BaseGone."""
        while True:
            found = file.read(offset, size)
            if not isinstance(found, Pieces):
                return found
            version = found.base.version(self.uploads.store.id)
            try:
                parts = [
                    bytes(await self.uploads.read_base(version, *part)) if isinstance(part, tuple) else bytes(part)
                    for part in found.parts
                ]
                return b"".join(parts)
            except (ObjectChanged, ObjectNotFound) as error:
                # Our own upload may have overwritten the base a moment ago, and not be noted yet.
                was_uploaded = await self._upload_ended(file.node_id, found.base.key)
                if self.freshness is not None:
                    await self.freshness.look()
                    await asyncio.to_thread(self.files.refresh, file.draft)
                await asyncio.to_thread(file.draft.rebase)
                if file.draft.base == found.base and not was_uploaded:
                    raise BaseGone(
                        f"the version {version.etag} of {version.key} is no longer in the bucket",
                        remedy="open the file again",
                    ) from error

    async def fill_gaps(self, file: OpenFile) -> None:
        """Make fewer intervals of a file that was written in thousands of places; the content stays the same.

        An under store that does not answer is a failure only when the file is in far too many pieces already. Raises StoreError
        kinds, BaseGone, TierFull.
        """
        draft = file.draft
        async with self._filling:
            try:
                for gap in await asyncio.to_thread(draft.gaps_to_fill):
                    for offset in range(gap.offset, gap.offset + gap.size, FILL_BYTES):
                        data = await self.fetch(file, offset, min(FILL_BYTES, gap.offset + gap.size - offset))
                        self.files.written(draft, await asyncio.to_thread(draft.fill, gap, offset, data))
            except ForebayError:
                if len(draft.extents) > FAR_TOO_MANY_EXTENTS:
                    raise

    async def _upload_ended(self, node_id: int, key: bytes) -> bool:
        """Whether there was an upload under way that may have overwritten a base; returns when it may have ended."""
        attempt = self.state.attempts.get(self.state.attempt_of.get(node_id, ""))
        if not self.does_writeback():
            if attempt is not None:
                await self.writeback.changed()
            return attempt is not None
        if attempt is not None and attempt.nonce not in self.uploads.active:
            await self.uploads.settle(attempt)  # its answer was lost: find out now
            return True
        if attempt is not None or key in self.uploads.busy_keys:
            await self.writeback.changed()
            return True
        return False
