"""A writable mount put together: the view, the operations, and the kit that a transport takes."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from .parts import Kit, Parts
from .writable_handlers import WritableHandlers
from .writing import Writing

if TYPE_CHECKING:
    from .operations import ReadOnlyOperations


def writable_kit(writing: Writing) -> Kit:
    """The operations of a writable mount. `writing` is closed with the mount."""

    def operations(parts: Parts, on_ready: Callable[[], None]) -> "ReadOnlyOperations":
        from .writable_operations import WritableOperations

        return WritableOperations(parts, on_ready, writing)

    return Kit(handlers=lambda parts: WritableHandlers(parts, writing), operations=operations)
