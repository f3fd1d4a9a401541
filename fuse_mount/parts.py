"""What the operations of a mount are made of, and which operations it has: the seam between a transport and what it serves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .boundary import Boundary
from .options import MountOptions
from .reads import FileReads
from .view import View
from .xattrs import Xattrs

if TYPE_CHECKING:
    from .lane import Handlers
    from .operations import ReadOnlyOperations


@dataclass(frozen=True)
class Parts:
    """Made once per mount, and shared by whatever answers its requests."""

    view: View
    reads: FileReads
    xattrs: Xattrs
    boundary: Boundary
    options: MountOptions


@dataclass(frozen=True)
class Kit:
    """The operations of a mount, for either transport. `operations` imports pyfuse3, so it is called only where it serves;
    its second argument is to be called when the kernel has agreed on the protocol."""

    handlers: Callable[[Parts], Handlers]
    operations: Callable[[Parts, Callable[[], None]], ReadOnlyOperations]
