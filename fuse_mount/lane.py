"""The lane: threads between the kernel and the handlers, without libfuse in between.

Each thread blocks in one `readv` on /dev/fuse (the kernel wakes exactly one per request), calls the handler and answers
with one `writev`; data goes from the cache's buffer to the kernel without another copy in Python. What a handler
cannot answer at once is a coroutine: it runs on the event loop, which answers when it is done.

Invariants:
- every request is answered exactly once, whatever the handler does (FORGETs have no answer);
- a reply that the kernel did not take (the asker is gone) is taken back, so that lookup counts stay exact;
- at most `max_inflight` coroutines run, at most `max_waiting` exist; beyond that EAGAIN;
- INTERRUPT cancels the coroutine if it still waits a second later, and it answers EINTR. Programs do not expect that of
  most calls on files, and the kernel asks for it at every signal that is handled (timers of git, of Go's runtime): so only a
  store that does not answer ends that way. For an unknown request it answers EAGAIN, and the kernel asks again if
  the request still lives. So it does not matter which thread sees which first;
- threads end only when the device says ENODEV (unmounted, or aborted) or is at its end.
"""

import asyncio
import errno
import logging
import os
import threading
from collections.abc import Callable, Coroutine, Mapping
from types import CoroutineType
from typing import Any, Protocol

from ..tiers.understore import Buffer
from .boundary import Boundary
from .options import MountOptions
from .readonly import Handler, Reply
from .turns import PATIENCE_S, Postponed, Turns
from .wire import (
    HEADER_BYTES,
    IN_HEADER,
    IN_ROUTE,
    INIT_IN,
    INIT_IN_FLAGS2,
    INIT_OUT,
    INTERRUPT_IN,
    MAJOR,
    MIN_READ_BUFFER_BYTES,
    MINOR,
    NOTIFY_INVAL_ENTRY,
    NOTIFY_INVAL_ENTRY_OUT,
    OLDEST_MINOR,
    OUT_HEADER,
    InitFlag,
    Op,
)

log = logging.getLogger(__name__)

REQUEST_PAGES = 256
PAGE_BYTES = 4096
# Read-ahead and other background requests that the kernel keeps in flight for this mount.
MAX_BACKGROUND = 64
CONGESTION = 48
# A device that fails without ENODEV this often in a row will not get better.
_READ_FAILURES_MAX = 100
# How long a request that was interrupted may go on.
INTERRUPT_PATIENCE_S = 1.0
# Errors of a reply that mean that nobody waits for it: ENOENT, the asker was interrupted; ENODEV and EPIPE, the mount is gone.
_GONE = frozenset({errno.ENOENT, errno.ENODEV, errno.EPIPE})

_WANTED = (
    InitFlag.ASYNC_READ
    | InitFlag.BIG_WRITES
    | InitFlag.DO_READDIRPLUS
    | InitFlag.ASYNC_DIO
    | InitFlag.NO_OPEN_SUPPORT
    | InitFlag.PARALLEL_DIROPS
    | InitFlag.MAX_PAGES
    | InitFlag.CACHE_SYMLINKS
    | InitFlag.INIT_EXT
)


class Handlers(Protocol):
    """What the lane asks of the operations of a mount; `readonly.ReadOnlyHandlers` is one."""

    max_write_bytes: int
    extra_flags: InitFlag
    open_without_asking: bool
    turns: Turns

    @property
    def handlers(self) -> dict[int, Handler]: ...
    @property
    def undelivered(self) -> dict[int, Callable[[memoryview], None]]: ...
    def read_in_turn(self, ino: int, offset: int, size: int) -> Reply | Coroutine[Any, Any, Reply]: ...
    def read_elsewhere(self, ino: int, offset: int, size: int) -> Coroutine[Any, Any, Reply]: ...
    def gauges(self) -> Mapping[str, int]: ...
    def close(self) -> None: ...


class _Waiting:
    """One request that is being answered on the event loop."""

    __slots__ = ("coroutine", "ino", "operation", "task", "unique")

    def __init__(self, unique: int, operation: int, ino: int, coroutine: Coroutine[Any, Any, Reply]) -> None:
        self.unique = unique
        self.operation = operation
        self.ino = ino
        self.coroutine = coroutine
        self.task: asyncio.Task[None] | None = None


class Lane:
    """Serves one connection. Owns the device from `start` on; `ended` is done when the kernel has let go of it."""

    name = "lane"

    def __init__(self, device: int, handlers: Handlers, boundary: Boundary, options: MountOptions) -> None:
        self._device = device
        self._handlers = handlers
        self._boundary = boundary
        self._options = options
        self._table = handlers.handlers
        self._table.update({Op.INIT: self._init, Op.INTERRUPT: self._interrupt, Op.DESTROY: lambda ino, request: b""})
        self._undelivered = handlers.undelivered
        self._turns = handlers.turns
        self._watches = False
        self._loop = asyncio.get_running_loop()
        self._slots = asyncio.Semaphore(options.max_inflight)
        self._waiting: dict[int, _Waiting] = {}
        self._threads: list[threading.Thread] = []
        self._alive = 0
        self._alive_lock = threading.Lock()
        self.ready: asyncio.Future[None] = self._loop.create_future()
        self.ended: asyncio.Future[None] = self._loop.create_future()
        self.kernel_minor: int | None = None
        # One number per thread, so that none is lost between two of them.
        self._served = [0] * options.lane_threads

    # --- lifetime -----------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to serve. `ready` is done after the kernel's INIT, or fails with OSError(EPROTO) if it is too old."""
        self._alive = self._options.lane_threads
        for index in range(self._options.lane_threads):
            # Daemon threads: a device that is stuck in the kernel must not keep a process from exiting.
            thread = threading.Thread(target=self._serve, args=(index,), name=f"forebay-lane-{index}", daemon=True)
            self._threads.append(thread)
            thread.start()

    async def close(self) -> None:
        """After `ended`: cancel what still waits, and close the device. Replies go nowhere any more."""
        self._turns.clear()
        tasks = [waiting.task for waiting in self._waiting.values() if waiting.task is not None]
        self.give_up()
        await asyncio.gather(*tasks, return_exceptions=True)
        if not self.ended.done():
            # A thread may still be inside a read of the descriptor: closing it could hand its number to another file.
            log.error("the kernel did not let go of the mount; its threads end with the process")
            return
        for thread in self._threads:
            thread.join()
        os.close(self._device)
        self._handlers.close()

    def give_up(self) -> None:
        """Cancel every coroutine that waits; each answers EINTR, which no one may be there to take."""
        for waiting in list(self._waiting.values()):
            self._cancel(waiting)

    def gauges(self) -> dict[str, int]:
        return {"requests_waiting": len(self._waiting) + len(self._turns), "requests": sum(self._served)}

    def invalidate_entry(self, parent: int, name: bytes) -> None:
        """Make the kernel forget a name. Raises OSError, but not if the kernel does not know it.

        The kernel takes locks of the folder for it, so never call this from a handler that a request waits for.
        """
        body = NOTIFY_INVAL_ENTRY_OUT.pack(parent, len(name), 0) + name + b"\0"
        header = OUT_HEADER.pack(OUT_HEADER.size + len(body), NOTIFY_INVAL_ENTRY, 0)
        try:
            os.writev(self._device, (header, body))
        except FileNotFoundError:
            pass

    # --- the threads --------------------------------------------------------------------------------------

    def _serve(self, index: int) -> None:
        try:
            self._read_requests(index)
        except BaseException:
            # Nothing above this thread would hear of it.
            log.exception("a lane thread of the mount failed; the others go on")
        finally:
            with self._alive_lock:
                self._alive -= 1
                last = self._alive == 0
            if last:
                self._call_loop(self._end)

    def _read_requests(self, index: int) -> None:
        buffer = bytearray(max(MIN_READ_BUFFER_BYTES, self._handlers.max_write_bytes + PAGE_BYTES))
        memory = memoryview(buffer)
        device, into = self._device, (buffer,)
        readv, route, table, turns = os.readv, IN_ROUTE.unpack_from, self._table, self._turns
        failures = 0
        while True:
            while (postponed := turns.next()) is not None:
                self._read_in_turn(*postponed)
            try:
                length = readv(device, into)
            except OSError as error:
                # ENOENT: the request was interrupted before anyone read it.
                if error.errno in (errno.ENOENT, errno.EINTR, errno.EAGAIN):
                    continue
                if error.errno == errno.ENODEV:
                    return
                failures += 1
                log.warning("reading from /dev/fuse failed: %s", error.strerror)
                if failures >= _READ_FAILURES_MAX:
                    raise
                continue
            failures = 0
            if length == 0:
                return
            if length < HEADER_BYTES:
                log.warning("the kernel sent a request of %d bytes, less than its header; ignored", length)
                continue
            request = memory[:length]
            operation, unique, ino = route(request)
            self._served[index] += 1
            handler = table.get(operation)
            if handler is None:
                self._reply(unique, operation, ino, errno.ENOSYS)
                continue
            try:
                reply = handler(ino, request)
            except Exception as error:
                code = self._boundary.errno_of(error, _name(operation), ino)
                if operation not in (Op.FORGET, Op.BATCH_FORGET, Op.INTERRUPT):
                    self._reply(unique, operation, ino, code)
                continue
            if isinstance(reply, Postponed):
                self._postpone(unique, reply)
            elif reply is not None:
                self._settle(unique, operation, ino, reply)
                reply = None  # its buffer is used again for the next, if nobody has it any more

    def _settle(self, unique: int, operation: int, ino: int, reply: Reply | Coroutine[Any, Any, Reply]) -> None:
        """Answer with what a handler has, or let its coroutine do so. Any thread."""
        if isinstance(reply, CoroutineType):
            self._wait_for(_Waiting(unique, operation, ino, reply))
        else:
            self._reply(unique, operation, ino, reply)  # type: ignore[arg-type]  # every coroutine is of that type

    def _read_in_turn(self, unique: int, read: Postponed) -> None:
        try:
            reply = self._handlers.read_in_turn(*read)
        except Exception as error:
            reply = self._boundary.errno_of(error, "read", read.ino)
        self._settle(unique, Op.READ, read.ino, reply)

    def _postpone(self, unique: int, read: Postponed) -> None:
        self._turns.postpone(unique, read)
        if not self._watches:
            self._watches = True
            self._call_loop(self._loop.call_later, PATIENCE_S, self._watch)

    def _watch(self) -> None:
        """Let no read wait for its turn too long."""
        for unique, read in self._turns.overdue():
            self._settle(unique, Op.READ, read.ino, self._handlers.read_elsewhere(*read))
        self._watches = False
        # Looked at last: who postpones a read now sees that nobody watches.
        if self._turns:
            self._watches = True
            self._loop.call_later(PATIENCE_S, self._watch)

    def _reply(self, unique: int, operation: int, ino: int, reply: Reply) -> None:
        """Answer a request: an errno if int, else data. Any thread. Never raises, never leaves it unanswered."""
        if type(reply) is int:
            self._write_error(unique, reply)
            return
        assert not isinstance(reply, int)
        try:
            os.writev(self._device, (OUT_HEADER.pack(OUT_HEADER.size + len(reply), 0, unique), reply))
        except OSError as error:
            self._take_back(operation, reply)
            if error.errno not in _GONE:
                log.error("the kernel refused the reply to %s of inode %d: %s", _name(operation), ino, error.strerror)
                self._write_error(unique, errno.EIO)
        except Exception:
            log.exception("the reply to %s of inode %d cannot be sent", _name(operation), ino)
            self._write_error(unique, errno.EIO)

    def _take_back(self, operation: int, reply: Buffer) -> None:
        take_back = self._undelivered.get(operation)
        if take_back is None:
            return
        try:
            take_back(memoryview(reply))
        except Exception:
            log.exception("a reply to %s that nobody took could not be taken back", _name(operation))

    def _write_error(self, unique: int, code: int) -> None:
        try:
            os.write(self._device, OUT_HEADER.pack(OUT_HEADER.size, -code, unique))
        except OSError as error:
            if error.errno not in _GONE:
                log.error("the kernel refused errno %d as a reply: %s", code, error.strerror)

    # --- what has to wait -----------------------------------------------------------------------------------

    def _wait_for(self, waiting: _Waiting) -> None:
        if len(self._waiting) >= self._options.max_waiting:
            waiting.coroutine.close()
            self._reply(waiting.unique, waiting.operation, waiting.ino, errno.EAGAIN)
            return
        self._waiting[waiting.unique] = waiting
        if not self._call_loop(self._begin, waiting):
            del self._waiting[waiting.unique]
            waiting.coroutine.close()
            self._reply(waiting.unique, waiting.operation, waiting.ino, errno.EIO)

    def _begin(self, waiting: _Waiting) -> None:
        waiting.task = self._loop.create_task(self._answer(waiting))
        # A task cancelled before its first step never runs its body, so the answer hangs on the task, not in it.
        waiting.task.add_done_callback(lambda task: self._settled(waiting, task))

    async def _answer(self, waiting: _Waiting) -> None:
        async with self._slots:
            try:
                reply = await waiting.coroutine
            except (Exception, asyncio.CancelledError) as error:
                reply = self._boundary.errno_of(error, _name(waiting.operation), waiting.ino)
        self._waiting.pop(waiting.unique, None)
        self._reply(waiting.unique, waiting.operation, waiting.ino, reply)

    def _settled(self, waiting: _Waiting, task: asyncio.Task[None]) -> None:
        """Answer EINTR for a request that was cancelled before its turn came."""
        if self._waiting.pop(waiting.unique, None) is not None:
            waiting.coroutine.close()
            self._write_error(waiting.unique, errno.EINTR)
        if not task.cancelled() and task.exception() is not None:
            log.error("answering %s failed", _name(waiting.operation), exc_info=task.exception())

    def _interrupt(self, ino: int, request: memoryview) -> Reply | None:
        (unique,) = INTERRUPT_IN.unpack_from(request, HEADER_BYTES)
        waiting = self._waiting.get(unique)
        if waiting is None:
            return errno.EAGAIN
        self._call_loop(self._loop.call_later, INTERRUPT_PATIENCE_S, self._cancel, waiting)
        return None

    @staticmethod
    def _cancel(waiting: _Waiting) -> None:
        if waiting.task is not None:
            waiting.task.cancel()

    # --- INIT and the end ---------------------------------------------------------------------------------

    def _init(self, ino: int, request: memoryview) -> Reply:
        major, minor, max_readahead, offered = INIT_IN.unpack_from(request, HEADER_BYTES)
        if major > MAJOR:
            # The kernel asks again in our version.
            return INIT_OUT.pack(MAJOR, MINOR, *(0,) * 9)
        if major < MAJOR or minor < OLDEST_MINOR:
            self._call_loop(
                self._refuse, f"the kernel speaks FUSE {major}.{minor}, and the lane needs {MAJOR}.{OLDEST_MINOR}"
            )
            return errno.EPROTO
        flags2 = 0
        if offered & InitFlag.INIT_EXT:
            (flags2,) = INIT_IN_FLAGS2.unpack_from(request, HEADER_BYTES)
        wanted = (_WANTED | self._handlers.extra_flags) & (offered | flags2 << 32)
        self.kernel_minor = minor
        self._handlers.open_without_asking = bool(wanted & InitFlag.NO_OPEN_SUPPORT)
        self._call_loop(self._be_ready)
        read_ahead = max(max_readahead, self._options.read_ahead_bytes)
        return INIT_OUT.pack(
            MAJOR, MINOR, read_ahead, wanted & 0xFFFFFFFF, MAX_BACKGROUND, CONGESTION, self._handlers.max_write_bytes, 1,
            REQUEST_PAGES, 0, wanted >> 32,
        )  # fmt: skip

    def _be_ready(self) -> None:
        if not self.ready.done():
            self.ready.set_result(None)

    def _refuse(self, reason: str) -> None:
        if not self.ready.done():
            self.ready.set_exception(OSError(errno.EPROTO, reason))

    def _end(self) -> None:
        if not self.ended.done():
            self.ended.set_result(None)
        self._refuse("the mount was removed before it was ready")

    def _call_loop(self, function: Callable[..., object], *arguments: object) -> bool:
        """Run on the event loop; False if it is closed already (the process is ending)."""
        try:
            self._loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:
            return False
        return True


def _name(operation: int) -> str:
    try:
        return Op(operation).name.lower()
    except ValueError:
        return f"operation {operation}"


assert IN_HEADER.size == HEADER_BYTES
