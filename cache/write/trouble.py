"""Why writers get errors: what the write tier or the records refused last, for `forebay status`."""

import time
from dataclasses import dataclass

from ...errors import MetadataUnavailable, TierError

REFUSALS = (TierError, MetadataUnavailable)


@dataclass(slots=True)
class Trouble:
    """`reason` is empty again once a data file was made durable. That a small file was, which lives in its record, says nothing of the tier."""

    reason: str = ""
    since: float = 0.0  # on the monotonic clock
    # A file that was refused: that what it wrote before is made durable says nothing either.
    _refused: int = 0

    def refused(self, node_id: int, error: Exception) -> None:
        if not self.reason:
            self.since = time.monotonic()
        self.reason = str(error)
        self._refused = node_id

    def wrote(self, node_id: int) -> None:
        if node_id == self._refused:
            self._refused = 0

    def synced(self, node_id: int) -> None:
        if node_id != self._refused:
            self.reason = ""
