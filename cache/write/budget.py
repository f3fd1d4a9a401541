"""A bound on bytes in memory, shared by all uploads."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class ByteBudget:
    """First come, first served; one that alone is larger than the budget gets all of it."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._free_bytes = limit_bytes
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @property
    def used_bytes(self) -> int:
        return self._limit_bytes - self._free_bytes

    @asynccontextmanager
    async def taken(self, size: int) -> AsyncIterator[None]:
        size = min(size, self._limit_bytes)
        if self._waiting or size > self._free_bytes:
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append((size, turn))
            try:
                await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled():
                    self._give_back(size)
                else:
                    self._waiting.remove((size, turn))
                    self._wake()
                raise
        else:
            self._free_bytes -= size
        try:
            yield
        finally:
            self._give_back(size)

    def _give_back(self, size: int) -> None:
        self._free_bytes += size
        self._wake()

    def _wake(self) -> None:
        while self._waiting and self._waiting[0][0] <= self._free_bytes:
            size, turn = self._waiting.popleft()
            if not turn.cancelled():
                self._free_bytes -= size
                turn.set_result(None)
