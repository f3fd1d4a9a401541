"""Changing labels: set and remove values at places, for whole batches; equal labels are changed once."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pyarrow as pa

from ..errors import UsageError
from .entries import ENTRY_SCHEMA
from .labels import Place, label_text
from .where import Label, parse_subject

_decode = msgspec.json.Decoder().decode


@dataclass(frozen=True)
class LabelChange:
    """`clear` drops all labels first; then `remove` takes values away and `put` sets them, at places given as keys."""

    put: Mapping[Place, Any] = field(default_factory=dict)
    remove: Sequence[Place] = ()
    clear: bool = False

    def apply(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The batch (ENTRY_SCHEMA) with changed labels."""
        coded = batch.column("labels").dictionary_encode()
        changed = [self._change(_decode(text)) for text in coded.dictionary.to_pylist()]
        texts = pa.array([*changed, self._change(None)], pa.string())
        labels = texts.take(coded.indices.fill_null(len(changed)))
        return batch.set_column(ENTRY_SCHEMA.get_field_index("labels"), ENTRY_SCHEMA.field("labels"), labels)

    def apply_all(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        return (self.apply(batch) for batch in batches)

    def _change(self, labels: Any) -> str | None:
        value = {} if self.clear or labels is None else labels
        if not isinstance(value, dict):
            if self.put:
                raise UsageError(
                    f"an entry's labels are {label_text(value)}, which has no keys to set",
                    remedy="clear the labels first",
                )
            return label_text(value)
        for place in self.remove:
            _remove(value, place)
        for place, item in self.put.items():
            _put(value, place, item)
        return label_text(value) if value else None


def label_place(text: str) -> Place:
    """The place that `class`, `review.score` or `["a key"].x` names. Raises UsageError."""
    subject = parse_subject(f"label{text}" if text.startswith("[") else f"label.{text}")
    if not isinstance(subject, Label):
        raise UsageError(f"{text!r} names no label")
    return subject.place


def _put(value: dict[str, Any], place: Place, item: Any) -> None:
    for key in place[:-1]:
        below = value.get(key)
        if not isinstance(below, dict):
            below = value[key] = {}
        value = below
    value[place[-1]] = item


def _remove(value: dict[str, Any], place: Place) -> None:
    below = value.get(place[0])
    if len(place) == 1:
        value.pop(place[0], None)
    elif isinstance(below, dict):
        _remove(below, place[1:])
        if not below:
            del value[place[0]]
