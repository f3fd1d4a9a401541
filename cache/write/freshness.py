"""How current the state is where others commit too: a look before each question about names, and a glance now and then.

Close-to-open needs the look: what one mount closed, the next `open` or lookup of another must see, however little later it comes.
Questions that arrive while a look is under way share the next one, so that a thousand of them cost two. A change stream would tell
later, not sooner: it says nothing about how long ago the last event was.

When the records do not answer, names are served as they were last known, as in an outage of the under store: only the first
question waits, and `stale_since` says since when.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from ...errors import MetadataUnavailable

logger = logging.getLogger(__name__)

WAIT_S = 5.0
GLANCE_S = 0.5


class Freshness:
    """`take_in` blocks, and says whether anything was new; `on_news` is told so, on the event loop."""

    def __init__(self, take_in: Callable[[], bool], on_news: Callable[[], None]) -> None:
        """Starts nothing. `close` it."""
        self._take_in = take_in
        self._on_news = on_news
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="forebay-freshness")
        self._next: asyncio.Task[None] | None = None
        self._running: asyncio.Task[None] | None = None
        self.stale_since: float | None = None  # monotonic

    async def look(self) -> None:
        """Return when everything is known that was committed before this call, or when that cannot be found out."""
        if self._next is None:
            self._next = asyncio.create_task(self._look())
        if self.stale_since is not None:
            return
        await asyncio.wait([self._next], timeout=WAIT_S)

    async def run(self) -> None:
        """Glance until cancelled."""
        while True:
            await asyncio.sleep(GLANCE_S)
            await self.look()

    async def close(self) -> None:
        for task in (self._next, self._running):
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        self._thread.shutdown(wait=False)

    async def _look(self) -> None:
        if self._running is not None:
            await asyncio.wait([self._running])
        self._running, self._next = self._next, None
        try:
            if await asyncio.get_running_loop().run_in_executor(self._thread, self._take_in):
                self._on_news()
            if self.stale_since is not None:
                logger.info("the records answer again, after %.0f s", time.monotonic() - self.stale_since)
            self.stale_since = None
        except MetadataUnavailable as error:
            if self.stale_since is None:
                logger.warning("names are served as they were last known: %s", error)
                self.stale_since = time.monotonic()
        finally:
            self._running = None
