"""A bound on bytes: who wants to hold memory takes it here first and gives it back afterwards.

Those that wait are served in order. What may be held although nobody needs it now (read ahead, no tier took it) is
*kept*: it counts, and is given up, oldest first, as soon as somebody wants the room. Used on one event loop only.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager


class ByteBudget:
    """At most `limit_bytes` are taken at any moment, except that a single larger request passes when all else is free."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.taken_bytes = 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._kept: dict[object, tuple[int, Callable[[], None]]] = {}

    def try_take(self, size_bytes: int, *, share: float = 1.0) -> bool:
        """Take at once or not at all; never ahead of those that wait, and only up to `share` of the limit."""
        while self._kept and self.taken_bytes + size_bytes > self.limit_bytes * share:
            self._release(next(iter(self._kept)))
        if self._waiting or self.taken_bytes + size_bytes > self.limit_bytes * share:
            return False
        self.taken_bytes += size_bytes
        return True

    async def take(self, size_bytes: int) -> None:
        """Wait for room and take it. Cancelling takes nothing."""
        if not self._waiting and self._make_room(size_bytes):
            self.taken_bytes += size_bytes
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((size_bytes, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.give(size_bytes)  # it was granted at the moment of the cancellation
            else:
                self._waiting.remove((size_bytes, turn))
                self._serve()
            raise

    @asynccontextmanager
    async def taken(self, size_bytes: int) -> AsyncIterator[None]:
        """`take`, and `give` at the end of the block."""
        await self.take(size_bytes)
        try:
            yield
        finally:
            self.give(size_bytes)

    def give(self, size_bytes: int) -> None:
        """Give back what was taken."""
        self.taken_bytes -= size_bytes
        assert self.taken_bytes >= 0
        self._serve()

    def keep(self, what: object, size_bytes: int, release: Callable[[], None]) -> None:
        """`what` holds `size_bytes` that were taken, and may be given up from now on: then `release` is called."""
        self._kept[what] = (size_bytes, release)
        self._serve()

    def give_up(self, what: object) -> None:
        """Give up something kept; nothing happens if it was given up before."""
        if what in self._kept:
            self._release(what)
            self._serve()

    def _release(self, what: object) -> None:
        size_bytes, release = self._kept.pop(what)
        self.taken_bytes -= size_bytes
        release()

    def _serve(self) -> None:
        while self._waiting and self._make_room(self._waiting[0][0]):
            size_bytes, turn = self._waiting.popleft()
            if not turn.done():
                self.taken_bytes += size_bytes
                turn.set_result(None)

    def _make_room(self, size_bytes: int) -> bool:
        while self.taken_bytes + size_bytes > self.limit_bytes and self._kept:
            self._release(next(iter(self._kept)))
        return self.taken_bytes + size_bytes <= self.limit_bytes or self.taken_bytes == 0
