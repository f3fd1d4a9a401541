"""The circuit breaker of one under store: an outage costs each call a bounded wait once, and then nothing.

Closed: calls go through and retry within their deadline. It opens when a call has used up its whole deadline and no
call at all was answered in that time: a short hiccup is waited out, an outage is recognised. Open: a call fails at
once, except one probe at a time, not more often than `PROBE_INTERVAL_S`; a probe that is answered closes it.
Any answer counts, also "not found" or "denied": the store is there.

A pure state machine: the caller does the I/O and says when it is.
"""

from dataclasses import dataclass

PROBE_INTERVAL_S = 0.5


@dataclass(slots=True)
class Breaker:
    """`down_since_s` is the time (as given by the caller) of the first failure of the present outage, while open."""

    last_answer_s: float = 0.0
    failing_since_s: float | None = None
    down_since_s: float | None = None
    reason: str = ""
    _probe_in_flight: bool = False
    _next_probe_s: float = 0.0

    @property
    def is_open(self) -> bool:
        return self.down_since_s is not None

    def probe_due(self, now_s: float) -> bool:
        """While open: whether it is time for a probe, and none is on its way."""
        return not self._probe_in_flight and now_s >= self._next_probe_s

    def start_probe(self, now_s: float) -> bool:
        """While open: whether the caller may try once. One that got True must call `answered` or `end_probe`."""
        if not self.probe_due(now_s):
            return False
        self._probe_in_flight = True
        return True

    def end_probe(self, now_s: float) -> None:
        """The probe ended without an answer (failed or cancelled)."""
        self._probe_in_flight = False
        self._next_probe_s = now_s + PROBE_INTERVAL_S

    def answered(self, now_s: float) -> None:
        self.last_answer_s = now_s
        self.failing_since_s = self.down_since_s = None
        self._probe_in_flight = False

    def failed(self, now_s: float) -> None:
        """One attempt was not answered."""
        if self.failing_since_s is None:
            self.failing_since_s = now_s

    def gave_up(self, started_s: float, reason: str) -> None:
        """A call that began at `started_s` has used up its deadline."""
        if self.last_answer_s < started_s and not self.is_open:
            self.down_since_s = started_s if self.failing_since_s is None else self.failing_since_s
            self.reason = reason
