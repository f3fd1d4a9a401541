"""Records in one SQLite file: the embedded default, for one process.

WAL with `synchronous=FULL`: a commit is one append and one fdatasync of the log. Measured with a record and 4 KiB of inline
data per transaction: 157 us, 6,300 commits/s; without the sync 46 us. So there is no journal of our own.

The log is checkpointed at 64 MiB rather than at SQLite's 4 MiB: small files live for seconds, and most of their pages
are overwritten or freed before they would be copied into the database. Freed pages go back to the file system in steps.
"""

import math
import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import NoReturn, TypeVar

from ....errors import MetadataUnavailable, TierFull
from .store import ABSENT, Batch, Changes, Record

CHECKPOINT_PAGES = 16 * 1024
PAGE_BYTES = 4096
# The log grows by this much at once, in zeros, which SQLite takes for its end. A sync of a file that has grown has to wait
# for the journal of the file system, and so for what all others write: 0.24 to 1 ms here, against 0.14 ms without.
RESERVE_BYTES = 8 * 1024 * 1024
# Free pages left in the file before some are given back to the file system, and how many at a time.
SPARE_PAGES = 4096
VACUUM_PAGES = 1024
LOCK_TIMEOUT_S = 10.0
# Rows that one statement takes. Each statement gives the GIL up and has to get it back, which on a busy mount costs more
# than the statement itself: a batch of 32 changes in a statement per row held up every close behind it for 10 ms.
ROWS = 64
# Statements that stay prepared: one for each number of rows.
STATEMENTS = 6 * ROWS

T = TypeVar("T")

SCHEMA_VERSION = 1
SCHEMA = """
CREATE TABLE IF NOT EXISTS records (key BLOB PRIMARY KEY, revision INTEGER NOT NULL, body BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS inline (name TEXT PRIMARY KEY, data BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS sequence (id INTEGER PRIMARY KEY CHECK (id = 1), value INTEGER NOT NULL);
INSERT OR IGNORE INTO sequence VALUES (1, 0);
"""


class SqliteRecords:
    """One connection, behind a mutex; reads and commits take turns."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._mutex = threading.Lock()
        try:
            self._connection = sqlite3.connect(
                path,
                timeout=LOCK_TIMEOUT_S,
                isolation_level=None,
                check_same_thread=False,
                cached_statements=STATEMENTS,
            )
        except sqlite3.Error as error:
            self._fail("open", error)
        try:
            execute = self._connection.execute
            (version,) = execute("PRAGMA user_version").fetchone()
            if version not in (0, SCHEMA_VERSION):
                raise MetadataUnavailable(
                    f"records {path} have format {version}, this version knows {SCHEMA_VERSION}",
                    remedy="use the version of Forebay that wrote them",
                )
            execute("PRAGMA auto_vacuum=INCREMENTAL")
            execute("PRAGMA journal_mode=WAL")
            execute("PRAGMA synchronous=FULL")
            execute("PRAGMA locking_mode=EXCLUSIVE")
            execute(f"PRAGMA wal_autocheckpoint={CHECKPOINT_PAGES}")
            execute("PRAGMA cache_size=-32768")
            self._connection.executescript(SCHEMA)
            execute(f"PRAGMA user_version={SCHEMA_VERSION}")
            self._sequence: int
            (self._sequence,) = execute("SELECT value FROM sequence").fetchone()
            self._log_fd = os.open(f"{path}-wal", os.O_WRONLY | os.O_CLOEXEC)
            self._reserved_bytes = 0
        except (sqlite3.Error, OSError) as error:
            self._connection.close()
            self._fail("open", error)
        except MetadataUnavailable:
            self._connection.close()
            raise

    @property
    def label(self) -> str:
        return f"SQLite file {self._path}"

    @property
    def is_shared(self) -> bool:
        return False

    @property
    def changes_kept_s(self) -> float:
        return math.inf

    def load(self) -> tuple[int, Iterator[Record]]:
        with self._mutex:
            try:
                rows = self._connection.execute("SELECT key, revision, body FROM records").fetchall()
            except sqlite3.Error as error:
                self._fail("read", error)
            return self._sequence, (Record(key, revision, body) for key, revision, body in rows)

    def commit(self, batch: Batch) -> int | None:
        with self._mutex:
            execute = self._connection.execute
            sequence: int = self._sequence + 1
            try:
                execute("BEGIN IMMEDIATE")
                if not self._is_current(batch):
                    execute("ROLLBACK")
                    return None
                self._apply(batch, sequence)
                execute("UPDATE sequence SET value = ?", (sequence,))
                execute("COMMIT")
            except sqlite3.Error as error:
                self._roll_back()
                self._fail("commit to", error)
            self._sequence = sequence
            self._reserve_log()
            if batch.drop_inline:
                self._give_back_space()
            return sequence

    def changes_since(self, sequence: int) -> Changes:
        """What is there with a newer revision. Removed keys are not kept here: nobody else changes this store."""
        with self._mutex:
            try:
                rows = self._connection.execute(
                    "SELECT key, revision, body FROM records WHERE revision > ? ORDER BY revision", (sequence,)
                ).fetchall()
            except sqlite3.Error as error:
                self._fail("read", error)
            return Changes(self._sequence, [Record(*row) for row in rows])

    def inline(self, name: str) -> bytes | None:
        with self._mutex:
            try:
                row = self._connection.execute("SELECT data FROM inline WHERE name = ?", (name,)).fetchone()
            except sqlite3.Error as error:
                self._fail("read", error)
            return None if row is None else bytes(row[0])

    def inline_names(self) -> Iterator[str]:
        with self._mutex:
            try:
                rows = self._connection.execute("SELECT name FROM inline").fetchall()
            except sqlite3.Error as error:
                self._fail("read", error)
            return (name for (name,) in rows)

    def close(self) -> None:
        with self._mutex:
            self._connection.close()
            if self._log_fd >= 0:
                os.close(self._log_fd)
                self._log_fd = -1

    def _is_current(self, batch: Batch) -> bool:
        if batch.after is not None and batch.after != self._sequence:
            return False
        expected = {**batch.guards, **{change.key: change.expected for change in batch.changes}}
        for rows in _batched(expected.items(), ROWS):
            (stale,) = self._connection.execute(
                f"WITH expected(key, revision) AS (VALUES {_places(rows, '(?, ?)')}) SELECT count(*) FROM expected "
                f"LEFT JOIN records USING (key) WHERE coalesce(records.revision, {ABSENT}) <> expected.revision",
                [*chain.from_iterable(rows)],
            ).fetchone()
            if stale:
                return False
        return True

    def _apply(self, batch: Batch, sequence: int) -> None:
        execute = self._connection.execute
        removed = [change.key for change in batch.changes if change.body is None]
        for keys in _batched(removed, ROWS):
            execute(f"DELETE FROM records WHERE key IN ({_places(keys, '?')})", keys)
        written = [(change.key, sequence, change.body) for change in batch.changes if change.body is not None]
        for rows in _batched(written, ROWS):
            execute(f"INSERT OR REPLACE INTO records VALUES {_places(rows, '(?, ?, ?)')}", [*chain.from_iterable(rows)])
        for names in _batched(batch.drop_inline, ROWS):
            execute(f"DELETE FROM inline WHERE name IN ({_places(names, '?')})", names)
        for items in _batched(batch.put_inline.items(), ROWS):
            execute(f"INSERT OR REPLACE INTO inline VALUES {_places(items, '(?, ?)')}", [*chain.from_iterable(items)])

    def _reserve_log(self) -> None:
        """Lengthen the log by a step of zeros when it has begun to grow. Only for speed: what fails here is left alone."""
        try:
            size_bytes = os.fstat(self._log_fd).st_size
            if self._reserved_bytes < size_bytes < CHECKPOINT_PAGES * PAGE_BYTES:
                os.pwrite(self._log_fd, bytes(RESERVE_BYTES), size_bytes)
                self._reserved_bytes = size_bytes + RESERVE_BYTES
        except OSError:
            self._reserved_bytes = CHECKPOINT_PAGES * PAGE_BYTES

    def _give_back_space(self) -> None:
        """Shrink the file by a step when much of it is free. Housekeeping: what fails here fails again, and loudly, in a commit."""
        try:
            (free_pages,) = self._connection.execute("PRAGMA freelist_count").fetchone()
            if free_pages > SPARE_PAGES:
                # executescript, because execute() steps this pragma once, and each step frees a single page.
                self._connection.executescript(f"PRAGMA incremental_vacuum({VACUUM_PAGES})")
        except sqlite3.Error:
            self._roll_back()

    def _roll_back(self) -> None:
        if self._connection.in_transaction:
            try:
                self._connection.execute("ROLLBACK")
            except sqlite3.Error as error:
                self._fail("roll back", error)

    def _fail(self, action: str, error: sqlite3.Error | OSError) -> NoReturn:
        if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
            raise TierFull(
                f"no room to {action} {self.label}", remedy="wait for the writeback, or give it more room"
            ) from error
        raise MetadataUnavailable(f"cannot {action} {self.label}: {error}", remedy="check the disk") from error


def _places(rows: Sequence[object], one: str) -> str:
    return ", ".join([one] * len(rows))


def _batched(items: Iterable[T], size: int) -> Iterator[tuple[T, ...]]:
    """The items in tuples of `size`; the last one may be shorter."""
    iterator = iter(items)
    while batch := tuple(islice(iterator, size)):
        yield batch
