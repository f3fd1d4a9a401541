"""The receipt: what a prefetch was asked for, what of it is here now, what is not and why, and who holds it.

    asked = present + missing       in objects; each asked object is counted once, on one side
    present = in RAM + in SSD       in bytes; what is in both counts where it was looked for first (RAM)

So it cannot claim more than was asked, and `complete` means that each asked byte was in a tier when it was counted, and
could not be evicted by this prefetch (it holds what it counted). Reasons are counted all; of the objects that are missing
the first `MOST_EXAMPLES` are named.
"""

from dataclasses import asdict, dataclass, field
from typing import Any

from ..pin_set import PinLabel

MOST_EXAMPLES = 100


@dataclass(frozen=True)
class Missing:
    """One object that is not here as a whole. `reason` is the `kind` of an error, `not_cached` or `stopped`."""

    path: str
    size_bytes: int
    reason: str
    detail: str


@dataclass
class TierPart:
    """What of the asked is in one tier. A small object counts as one block."""

    objects: int = 0
    blocks: int = 0
    size_bytes: int = 0


@dataclass
class Receipt:
    """See the module. While the prefetch runs, it is what was done so far."""

    purpose: str = ""
    asked_objects: int = 0
    asked_bytes: int = 0
    present_objects: int = 0
    present_bytes: int = 0
    found_objects: int = 0
    found_bytes: int = 0
    ram: TierPart = field(default_factory=TierPart)
    ssd: TierPart = field(default_factory=TierPart)
    missing_objects: int = 0
    missing_bytes: int = 0
    missing_reasons: dict[str, int] = field(default_factory=dict)
    missing_examples: list[Missing] = field(default_factory=list)
    requests: int = 0
    fetched_bytes: int = 0
    pin: PinLabel | None = None
    seconds: float = 0.0
    # Whether the end of what was asked has been reached: a prefetch that was stopped does not know what it left out.
    ended: bool = False

    @property
    def complete(self) -> bool:
        """Whether everything that was asked is present."""
        return self.ended and self.missing_objects == 0

    @property
    def present_fraction(self) -> float:
        """Share of the asked bytes that is here: 0 to 1."""
        return self.present_bytes / self.asked_bytes if self.asked_bytes else 1.0

    def count_missing(self, path: str, size_bytes: int, reason: str, detail: str) -> None:
        self.missing_objects += 1
        self.missing_bytes += size_bytes
        self.missing_reasons[reason] = self.missing_reasons.get(reason, 0) + 1
        if len(self.missing_examples) < MOST_EXAMPLES:
            self.missing_examples.append(Missing(path, size_bytes, reason, detail))

    def to_json(self) -> dict[str, Any]:
        """Plain values, with `complete` and `present_fraction`; stable names."""
        return {**asdict(self), "complete": self.complete, "present_fraction": self.present_fraction}
