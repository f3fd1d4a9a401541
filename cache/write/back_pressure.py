"""Back-pressure: who would pass the bound on what is dirty waits for the writeback, and then gets ENOSPC.

The bound is on bytes and on files, buffered ones included. It is asked before each write, so that nothing is acked that was not
allowed.
"""

import time
from dataclasses import dataclass

from ...errors import TierFull
from .open_files import OpenFiles
from .options import WriteOptions
from .state import State
from .status import Waits
from .writeback import Writeback


@dataclass(frozen=True, slots=True)
class BackPressure:
    state: State
    files: OpenFiles
    writeback: Writeback
    options: WriteOptions
    waits: Waits

    def has_room(self, size: int) -> bool:
        """Whether `size` more dirty bytes may be written now. Cheap, for every write."""
        return (
            self.state.dirty_bytes + self.files.buffered_bytes + size <= self.options.max_dirty_bytes
            and len(self.state.dirty) < self.options.max_dirty_files
        )

    async def wait_for_room(self, size: int) -> None:
        """Hold a writer until there is room. Raises TierFull after `dirty_wait_s`."""
        began = time.monotonic()
        self.waits.count += 1
        self.waits.now += 1
        try:
            while not self.has_room(size):
                if time.monotonic() - began >= self.options.dirty_wait_s:
                    self.waits.refused += 1
                    raise TierFull(
                        f"{self.state.dirty_bytes} bytes in {len(self.state.dirty)} files wait for the bucket, "
                        f"and none left within {self.options.dirty_wait_s:g} s",
                        remedy=self.writeback.paused_reason or "raise --max-dirty-size or wait for the writeback",
                    )
                self.writeback.wake()
                await self.writeback.changed()
        finally:
            self.waits.now -= 1
            self.waits.seconds += time.monotonic() - began
