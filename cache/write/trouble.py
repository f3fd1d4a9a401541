"""Why writers get errors: what the write tier or the records refused last, for `forebay status`."""

import time
from dataclasses import dataclass
from types import TracebackType

from ...errors import MetadataUnavailable, TierError


@dataclass(slots=True)
class Trouble:
    """A context manager around what may be refused; errors pass. `reason` is empty again once a data file was made durable.

    That a small file was, which lives in its record, says nothing of the tier.
    """

    reason: str = ""
    since: float = 0.0  # on the monotonic clock

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, TierError | MetadataUnavailable):
            if not self.reason:
                self.since = time.monotonic()
            self.reason = str(error)

    def is_over(self) -> None:
        self.reason = ""
