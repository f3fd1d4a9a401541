"""One piece of work per key, however many wait for it.

The work is a task of its own: a waiter that is cancelled leaves it to the others, and nobody's cancellation loses what
was nearly there. The tasks are owned here, and `close` ends them.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Hashable
from typing import Any, Generic, TypeVar

from ...errors import ForebayError

logger = logging.getLogger(__name__)

T = TypeVar("T")


class Flights(Generic[T]):
    """For one event loop. As many tasks as there are keys asked for at the moment."""

    def __init__(self) -> None:
        self._tasks: dict[Hashable, asyncio.Task[T]] = {}

    def __len__(self) -> int:
        return len(self._tasks)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._tasks

    def join(self, key: Hashable, work: Callable[[], Coroutine[Any, Any, T]]) -> Awaitable[T]:
        """The result of the work under this key, which is begun if nobody began it yet; raises what it raises."""
        task = self._tasks.get(key)
        if task is None:
            task = self._tasks[key] = asyncio.create_task(work(), name=str(key))
            task.add_done_callback(lambda done: self._ended(key, done))
        return asyncio.shield(task)

    def begin(self, key: Hashable, work: Callable[[], Coroutine[Any, Any, T]]) -> None:
        """Have it done without waiting."""
        self.join(key, work)

    async def close(self) -> None:
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _ended(self, key: Hashable, task: "asyncio.Task[T]") -> None:
        del self._tasks[key]
        if task.cancelled():
            return
        error = task.exception()  # whoever waits gets it too
        if error is not None and not isinstance(error, ForebayError):
            logger.error("%s failed", key, exc_info=error)
