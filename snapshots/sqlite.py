"""The metadata store in one SQLite file: the embedded default, and the twin of mongo.py.

WAL mode: readers never wait for the writer, and a crash loses nothing that was committed (`synchronous=FULL`). One
connection per thread; SQLite's own lock, waited for within the deadline, orders writers, also across processes. A local
disk is assumed: WAL does not work over network file systems, use MongoDB there.
"""

import json
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import MetadataUnavailable, RefNotFound
from .metastore import (
    SCHEMA_VERSION,
    CommitId,
    DatasetRecord,
    GcState,
    LeaseRecord,
    Moved,
    PageState,
    Published,
)
from .pages import PageId

_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS pages (
    id BLOB PRIMARY KEY, touched_ms INTEGER NOT NULL, condemned INTEGER NOT NULL DEFAULT 0, data BLOB NOT NULL);
CREATE INDEX IF NOT EXISTS pages_condemned ON pages (condemned) WHERE condemned != 0;
CREATE INDEX IF NOT EXISTS pages_state ON pages (id, touched_ms, condemned);
CREATE TABLE IF NOT EXISTS commits (
    id BLOB PRIMARY KEY, dataset TEXT NOT NULL, touched_ms INTEGER NOT NULL, data BLOB NOT NULL);
CREATE INDEX IF NOT EXISTS commits_dataset ON commits (dataset, id);
CREATE TABLE IF NOT EXISTS datasets (
    name TEXT PRIMARY KEY, created_ms INTEGER NOT NULL, description TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS refs (
    dataset TEXT NOT NULL REFERENCES datasets (name) ON DELETE CASCADE, kind TEXT NOT NULL, name TEXT NOT NULL,
    commit_id BLOB NOT NULL, PRIMARY KEY (dataset, kind, name)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS versions (
    dataset TEXT NOT NULL REFERENCES datasets (name) ON DELETE CASCADE, number INTEGER NOT NULL,
    commit_id BLOB NOT NULL, PRIMARY KEY (dataset, number)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS leases (
    id TEXT PRIMARY KEY, started_ms INTEGER NOT NULL, expires_ms INTEGER NOT NULL, data TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS gc (
    one INTEGER PRIMARY KEY CHECK (one = 1), run INTEGER NOT NULL, phase TEXT NOT NULL, since_ms INTEGER NOT NULL);
"""
# SQLite's limit on variables per statement is 32766; this many ids also keep one statement short.
_IDS_PER_STATEMENT = 500
_FETCH_ROWS = 1000


class SqliteMetaStore:
    """A MetaStore in the file `path`, made when it is not there. Raises MetadataUnavailable when it cannot be opened."""

    def __init__(self, path: Path, *, timeout_s: float = 30.0) -> None:
        self.path = path
        self.timeout_s = timeout_s
        self._local = threading.local()
        self._connections: list[sqlite3.Connection] = []
        self._lock = threading.Lock()
        self._closed = False
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise MetadataUnavailable(f"cannot make the folder of {self.name}: {error}") from error
        with self._writing() as db:
            for statement in _SCHEMA.split(";\n"):
                db.execute(statement)
            db.execute("INSERT OR IGNORE INTO meta VALUES ('schema', ?)", (str(SCHEMA_VERSION),))
            db.execute("INSERT OR IGNORE INTO gc VALUES (1, 0, 'idle', 0)")
            (found,) = db.execute("SELECT value FROM meta WHERE name = 'schema'").fetchone()
        if int(found) != SCHEMA_VERSION:
            self.close()
            raise MetadataUnavailable(
                f"{self.name} has schema {found}, this Forebay knows {SCHEMA_VERSION}", remedy="upgrade Forebay"
            )

    @property
    def name(self) -> str:
        return f"sqlite:///{self.path}"

    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def close(self) -> None:
        with self._lock:
            self._closed = True
            connections, self._connections = self._connections, []
        for connection in connections:
            connection.close()

    # --- Pages.

    def put_pages(self, pages: Sequence[tuple[PageId, bytes]]) -> int:
        now = self.now_ms()
        with self._writing() as db:
            (before,) = db.execute("SELECT total_changes()").fetchone()
            # The bytes are written again too: a page that was damaged on disk is healed by whoever stores it anew.
            touched = db.executemany(
                "UPDATE pages SET touched_ms = ?, condemned = 0, data = ? WHERE id = ?",
                [(now, data, name) for name, data in pages],
            ).rowcount
            db.executemany(
                "INSERT OR IGNORE INTO pages (id, touched_ms, data) VALUES (?, ?, ?)",
                [(name, now, data) for name, data in pages],
            )
            (after,) = db.execute("SELECT total_changes()").fetchone()
        return int(after) - int(before) - touched

    def get_pages(self, ids: Sequence[PageId]) -> dict[PageId, bytes]:
        found: dict[PageId, bytes] = {}
        with self._reading() as db:
            for some in _chunks(ids):
                found.update(db.execute(f"SELECT id, data FROM pages WHERE id IN ({_marks(some)})", some))
        return found

    def touch_pages(self, ids: Sequence[PageId]) -> set[PageId]:
        now = self.now_ms()
        missing = set(ids)
        with self._writing() as db:
            for some in _chunks(ids):
                rows = db.execute(
                    f"UPDATE pages SET touched_ms = ?, condemned = 0 WHERE id IN ({_marks(some)}) RETURNING id",
                    (now, *some),
                )
                missing.difference_update(row[0] for row in rows.fetchall())
        return missing

    def page_states(self) -> Iterator[PageState]:
        yield from self._page_states("")

    def condemned_pages(self) -> Iterator[PageState]:
        yield from self._page_states("AND condemned != 0")

    def _page_states(self, condition: str) -> Iterator[PageState]:
        last = b""
        while True:
            with self._reading() as db:
                rows = db.execute(
                    "SELECT id, touched_ms, condemned, length(data) FROM pages "
                    f"WHERE id > ? {condition} ORDER BY id LIMIT {_FETCH_ROWS}",
                    (last,),
                ).fetchall()
            if not rows:
                return
            yield from (PageState(*row) for row in rows)
            last = rows[-1][0]

    def condemn_pages(self, ids: Sequence[PageId], run: int, not_after_ms: int) -> int:
        with self._writing() as db:
            return sum(
                db.execute(
                    f"UPDATE pages SET condemned = ? WHERE touched_ms <= ? AND id IN ({_marks(some)})",
                    (run, not_after_ms, *some),
                ).rowcount
                for some in _chunks(ids)
            )

    def delete_condemned(self, ids: Sequence[PageId]) -> int:
        with self._writing() as db:
            return sum(
                db.execute(f"DELETE FROM pages WHERE condemned != 0 AND id IN ({_marks(some)})", some).rowcount
                for some in _chunks(ids)
            )

    # --- Commits.

    def put_commit(self, commit_id: CommitId, dataset: str, data: bytes) -> None:
        with self._writing() as db:
            db.execute(
                "INSERT INTO commits VALUES (?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET touched_ms = excluded.touched_ms",
                (commit_id, dataset, self.now_ms(), data),
            )

    def get_commits(self, ids: Sequence[CommitId]) -> dict[CommitId, bytes]:
        found: dict[CommitId, bytes] = {}
        with self._reading() as db:
            for some in _chunks(ids):
                found.update(db.execute(f"SELECT id, data FROM commits WHERE id IN ({_marks(some)})", some))
        return found

    def find_commits(self, dataset: str, id_prefix: str, limit: int) -> list[CommitId]:
        low = bytes.fromhex(id_prefix.ljust(64, "0"))
        high = bytes.fromhex(id_prefix.ljust(64, "f"))
        with self._reading() as db:
            rows = db.execute(
                "SELECT id FROM commits WHERE dataset = ? AND id BETWEEN ? AND ? ORDER BY id LIMIT ?",
                (dataset, low, high, limit),
            )
            return [row[0] for row in rows.fetchall()]

    def commit_states(self) -> Iterator[PageState]:
        with self._reading() as db:
            rows = db.execute("SELECT id, touched_ms, 0, length(data) FROM commits").fetchall()
        yield from (PageState(*row) for row in rows)

    def delete_commits(self, ids: Sequence[CommitId], not_after_ms: int) -> int:
        with self._writing() as db:
            return sum(
                db.execute(
                    f"DELETE FROM commits WHERE touched_ms <= ? AND id IN ({_marks(some)})", (not_after_ms, *some)
                ).rowcount
                for some in _chunks(ids)
            )

    # --- Datasets and refs.

    def create_dataset(self, name: str, description: str) -> bool:
        with self._writing() as db:
            row = (name, self.now_ms(), description)
            return db.execute("INSERT OR IGNORE INTO datasets VALUES (?, ?, ?)", row).rowcount == 1

    def delete_dataset(self, name: str) -> bool:
        with self._writing() as db:
            return db.execute("DELETE FROM datasets WHERE name = ?", (name,)).rowcount == 1

    def dataset_names(self) -> list[str]:
        with self._reading() as db:
            return [row[0] for row in db.execute("SELECT name FROM datasets ORDER BY name").fetchall()]

    def dataset(self, name: str) -> DatasetRecord | None:
        with self._reading() as db:
            db.execute("BEGIN")
            try:
                row = db.execute("SELECT created_ms, description FROM datasets WHERE name = ?", (name,)).fetchone()
                if row is None:
                    return None
                refs = db.execute("SELECT kind, name, commit_id FROM refs WHERE dataset = ?", (name,)).fetchall()
                count = db.execute("SELECT count(*) FROM versions WHERE dataset = ?", (name,)).fetchone()[0]
            finally:
                db.execute("COMMIT")
        branches = {ref: commit for kind, ref, commit in refs if kind == "branch"}
        tags = {ref: commit for kind, ref, commit in refs if kind == "tag"}
        return DatasetRecord(name, row[0], row[1], branches, tags, count)

    def versions(self, name: str) -> list[CommitId]:
        with self._reading() as db:
            rows = db.execute("SELECT commit_id FROM versions WHERE dataset = ? ORDER BY number", (name,)).fetchall()
        return [row[0] for row in rows]

    def publish(self, dataset: str, branch: str, expected: CommitId | None, new: CommitId) -> Published | Moved:
        with self._writing() as db:
            outcome = self._swap(db, dataset, "branch", branch, expected, new)
            if isinstance(outcome, Moved):
                if outcome.current != new:
                    return outcome
                row = db.execute(
                    "SELECT max(number) FROM versions WHERE dataset = ? AND commit_id = ?", (dataset, new)
                ).fetchone()
                return Published(row[0]) if row[0] else outcome
            (number,) = db.execute(
                "INSERT INTO versions SELECT ?1, count(*) + 1, ?2 FROM versions WHERE dataset = ?1 RETURNING number",
                (dataset, new),
            ).fetchone()
            return Published(number)

    def set_ref(
        self, dataset: str, kind: str, name: str, expected: CommitId | None, new: CommitId | None
    ) -> Published | Moved:
        with self._writing() as db:
            return self._swap(db, dataset, kind, name, expected, new)

    def _swap(
        self,
        db: sqlite3.Connection,
        dataset: str,
        kind: str,
        name: str,
        expected: CommitId | None,
        new: CommitId | None,
    ) -> Published | Moved:
        if db.execute("SELECT 1 FROM datasets WHERE name = ?", (dataset,)).fetchone() is None:
            raise RefNotFound(f"there is no dataset {dataset!r} in {self.name}")
        where = (dataset, kind, name)
        row = db.execute("SELECT commit_id FROM refs WHERE dataset = ? AND kind = ? AND name = ?", where).fetchone()
        current = row[0] if row else None
        if current != expected:
            return Moved(current)
        if new is None:
            db.execute("DELETE FROM refs WHERE dataset = ? AND kind = ? AND name = ?", where)
        else:
            db.execute("INSERT OR REPLACE INTO refs VALUES (?, ?, ?, ?)", (*where, new))
        return Published()

    # --- Leases.

    def put_lease(self, lease: LeaseRecord, ttl_s: float) -> LeaseRecord:
        now = self.now_ms()
        data = json.dumps(
            {
                "dataset": lease.dataset,
                "commit": lease.commit.hex() if lease.commit else None,
                "purpose": lease.purpose,
                "what": lease.what,
                "owner": lease.owner,
                "host": lease.host,
                "pid": lease.pid,
            }
        )
        with self._writing() as db:
            db.execute("DELETE FROM leases WHERE expires_ms <= ?", (now,))
            db.execute(
                "INSERT INTO leases VALUES (?, ?, ?, ?) "
                "ON CONFLICT (id) DO UPDATE SET expires_ms = excluded.expires_ms, data = excluded.data",
                (lease.id, now, now + int(ttl_s * 1000), data),
            )
            row = db.execute("SELECT id, started_ms, expires_ms, data FROM leases WHERE id = ?", (lease.id,)).fetchone()
        return _lease(row)

    def renew_lease(self, lease_id: str, ttl_s: float) -> bool:
        now = self.now_ms()
        with self._writing() as db:
            row = (now + int(ttl_s * 1000), lease_id, now)
            return db.execute("UPDATE leases SET expires_ms = ? WHERE id = ? AND expires_ms > ?", row).rowcount == 1

    def drop_lease(self, lease_id: str, *, timeout_s: float | None = None) -> None:
        with self._writing() as db:
            db.execute("DELETE FROM leases WHERE id = ?", (lease_id,))

    def leases(self) -> list[LeaseRecord]:
        with self._reading() as db:
            rows = db.execute(
                "SELECT id, started_ms, expires_ms, data FROM leases WHERE expires_ms > ? ORDER BY started_ms, id",
                (self.now_ms(),),
            ).fetchall()
        return [_lease(row) for row in rows]

    # --- State of gc.

    def gc_state(self) -> GcState:
        with self._reading() as db:
            run, phase, since_ms = db.execute("SELECT run, phase, since_ms FROM gc").fetchone()
        return GcState(run=run, phase=phase, since_ms=since_ms)

    def set_gc_state(self, expected: GcState, run: int, phase: str) -> GcState | None:
        now = self.now_ms()
        with self._writing() as db:
            changed = db.execute(
                "UPDATE gc SET run = ?, phase = ?, since_ms = ? WHERE run = ? AND phase = ? AND since_ms = ?",
                (run, phase, now, expected.run, expected.phase, expected.since_ms),
            ).rowcount
        return GcState(run=run, phase=phase, since_ms=now) if changed else None

    # --- Connections.

    def _connection(self) -> sqlite3.Connection:
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is not None:
            return connection
        # Transactions are written out (isolation_level=None), so that what is one can be seen in the code.
        connection = sqlite3.connect(self.path, timeout=self.timeout_s, isolation_level=None, check_same_thread=False)
        with self._lock:
            if self._closed:
                connection.close()
                raise MetadataUnavailable(f"{self.name} is closed")
            self._connections.append(connection)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
        self._local.connection = connection
        return connection

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        try:
            yield self._connection()
        except sqlite3.Error as error:
            raise self._unavailable(error) from error

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction; rolled back when the body raises."""
        try:
            db = self._connection()
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
            except BaseException:
                db.execute("ROLLBACK")
                raise
            db.execute("COMMIT")
        except sqlite3.Error as error:
            raise self._unavailable(error) from error

    def _unavailable(self, error: sqlite3.Error) -> MetadataUnavailable:
        text = str(error)
        if "locked" in text:
            return MetadataUnavailable(
                f"{self.name} was locked by another process for {self.timeout_s:g} s", remedy="try again"
            )
        if "not a database" in text or "malformed" in text:
            return MetadataUnavailable(f"{self.name} is damaged ({text})", remedy="restore it from a backup")
        return MetadataUnavailable(f"{self.name}: {text}", remedy="check that the file can be read and written")


def _lease(row: tuple[str, int, int, str]) -> LeaseRecord:
    fields = json.loads(row[3])
    fields["commit"] = bytes.fromhex(fields["commit"]) if fields["commit"] else None
    return LeaseRecord(id=row[0], started_ms=row[1], expires_ms=row[2], **fields)


def _chunks(ids: Sequence[bytes]) -> Iterator[list[bytes]]:
    for start in range(0, len(ids), _IDS_PER_STATEMENT):
        yield list(ids[start : start + _IDS_PER_STATEMENT])


def _marks(values: Sequence[Any]) -> str:
    return ",".join("?" * len(values))
