"""Records of the write side: a small key-value store with revisions and atomic batches. The protocol is in `store.py`."""

from .sqlite import SqliteRecords
from .store import ABSENT, Batch, Change, Changes, Record, Records

__all__ = ["ABSENT", "Batch", "Change", "Changes", "Record", "Records", "SqliteRecords"]
