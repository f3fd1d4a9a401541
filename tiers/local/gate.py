"""Lets changes of a tier in until it closes, and makes closing wait for those that are under way.

After `close` the folder may belong to another process at once. A thread that was in the middle of a write must not
go on writing into it, so whoever closes waits for it; a write ends soon, as it waits for nothing but its disk.
"""

import threading
from types import TracebackType


class Gate:
    """`with gate:` around each change. Thread-safe."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._inside = 0
        self._closed = False

    @property
    def closed(self) -> bool:
        return self._closed

    def __enter__(self) -> bool:
        """Whether the gate was open. If not, the block must change nothing."""
        with self._condition:
            self._inside += 1
            return not self._closed

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._condition:
            self._inside -= 1
            if self._closed:
                self._condition.notify_all()

    def close(self) -> bool:
        """Let nobody in any more, and wait until all are out. False if it was closed before. Not from inside."""
        with self._condition:
            if self._closed:
                return False
            self._closed = True
            self._condition.wait_for(lambda: self._inside == 0)
            return True
