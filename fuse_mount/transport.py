"""The two ways to serve a connection, behind one protocol: the lane, and libfuse through pyfuse3."""

import asyncio
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Protocol

from .lane import Lane
from .parts import Kit, Parts
from .readonly import ReadOnlyHandlers

if TYPE_CHECKING:
    from .operations import ReadOnlyOperations


class Transport(Protocol):
    """Serves one mounted connection and owns its descriptor, once made. All calls on the event loop.

    `ready` is done when the kernel has agreed on the protocol, or fails with OSError(EPROTO); `ended` when the mount is gone.
    """

    name: str
    ready: asyncio.Future[None]
    ended: asyncio.Future[None]

    def start(self) -> None: ...

    def invalidate_entry(self, parent: int, name: bytes) -> None:
        """Make the kernel forget a name; no error if it does not know it."""
        ...

    def gauges(self) -> Mapping[str, int]: ...

    def give_up(self) -> None:
        """Stop waiting for any I/O: the connection was aborted, and nobody waits for the replies."""
        ...

    async def close(self) -> None:
        """Let go of everything. After `ended`, or when nothing is to be saved any more."""
        ...


class LaneTransport(Lane):
    """The lane with the operations of a kit on it."""

    def __init__(self, device: int, parts: Parts, kit: Kit) -> None:
        self._operations = kit.handlers(parts)
        super().__init__(device, self._operations, parts.boundary, parts.options)

    def gauges(self) -> dict[str, int]:
        return {**super().gauges(), **self._operations.gauges()}


class Pyfuse3Transport:
    """libfuse reads the connection, pyfuse3 calls the operations on the event loop."""

    name = "pyfuse3"

    def __init__(self, device: int, parts: Parts, kit: Kit) -> None:
        from .pyfuse3_shim import Session

        loop = asyncio.get_running_loop()
        self.ready: asyncio.Future[None] = loop.create_future()
        self.ended: asyncio.Future[None] = loop.create_future()
        self._operations = kit.operations(parts, self._be_ready)
        self._session = Session(device, self._operations)
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._session.serve())
        self._task.add_done_callback(self._end)

    def invalidate_entry(self, parent: int, name: bytes) -> None:
        self._session.invalidate_entry(parent, name)

    def gauges(self) -> Mapping[str, int]:
        return self._operations.gauges()

    def give_up(self) -> None:
        self._operations.give_up()

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._session.close()
        self._operations.close()

    def _be_ready(self) -> None:
        if not self.ready.done():
            self.ready.set_result(None)

    def _end(self, task: asyncio.Task[None]) -> None:
        if not self.ready.done():
            self.ready.set_exception(OSError("libfuse ended before the mount was ready"))
        if not self.ended.done():
            if task.cancelled() or task.exception() is None:
                self.ended.set_result(None)
            else:
                self.ended.set_exception(task.exception() or OSError("libfuse failed"))


def _read_only_operations(parts: Parts, on_ready: Callable[[], None]) -> "ReadOnlyOperations":
    from .operations import ReadOnlyOperations

    return ReadOnlyOperations(parts, on_ready)


READ_ONLY = Kit(handlers=ReadOnlyHandlers, operations=_read_only_operations)
