"""The metadata store in MongoDB: shared by every machine of a cluster.

Collections: `pages` (_id: hash, data, touched, condemned), `commits`, `datasets`, `leases`, `gc`, `meta`.

- A dataset is **one document**, with its refs and version numbers inside, so that moving a branch and giving the version
  its number is one atomic update without a transaction: it works on a standalone server too, and a retried call can be
  told from a lost race. The document limit of 16 MiB bounds a dataset to about 300,000 versions and refs.
- Writes are acknowledged by a majority, and reads see only such writes: a fail-over takes nothing back.
- The driver repeats each operation once; above it `_retrying` repeats until the deadline, which rides out an election.
  This is safe because every operation here may be applied twice (docs/design/0003-snapshot-gc.md).
- All ages are by the server's clock ($$NOW), not by those of the machines that write.

The synchronous client in threads was chosen over the asyncio one: the work between two calls is CPU-bound (columns,
LZ4, hashes), so that on an event loop every call would sit in a thread anyway.
"""

import random
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

import pymongo
import pymongo.errors
from bson.binary import Binary
from pymongo import MongoClient, ReturnDocument, UpdateOne
from pymongo.collection import Collection
from pymongo.read_concern import ReadConcern
from pymongo.write_concern import WriteConcern

from ..errors import ConfigError, MetadataUnavailable, RefNotFound
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
from .mongo_calls import Retrying, redacted, shortened
from .pages import PageId

Document = dict[str, Any]

DEFAULT_DATABASE = "forebay"
# The server bounds one answer by 48 MB; a page is at most a few hundred kilobytes in practice.
_IDS_PER_CALL = 1000
_FIELD = {"branch": "branches", "tag": "tags"}


class MongoMetaStore:
    """A MetaStore in the database that the URL names (`mongodb://host/database`, default `forebay`).

    Raises ConfigError for a bad URL, MetadataUnavailable when the server does not answer within `timeout_s`.
    """

    def __init__(self, url: str, *, timeout_s: float = 30.0) -> None:
        self.timeout_s = timeout_s
        self._name = redacted(url)
        self._retrying = Retrying(self._name, timeout_s)
        try:
            self._client: MongoClient[Document] = MongoClient(
                url, appname="forebay", serverSelectionTimeoutMS=min(5000, int(timeout_s * 1000)), tz_aware=True
            )
            database = self._client.get_default_database(DEFAULT_DATABASE)
        except (pymongo.errors.ConfigurationError, pymongo.errors.InvalidURI, ValueError) as error:
            raise ConfigError(f"{self._name} is no usable MongoDB URL: {shortened(error)}") from None
        database = database.with_options(
            write_concern=WriteConcern(w="majority", j=True), read_concern=ReadConcern("majority")
        )
        self._pages: Collection[Document] = database["pages"]
        self._commits: Collection[Document] = database["commits"]
        self._datasets: Collection[Document] = database["datasets"]
        self._leases: Collection[Document] = database["leases"]
        self._gc: Collection[Document] = database["gc"]
        self._meta: Collection[Document] = database["meta"]
        self._database = database
        try:
            self._retrying(self._prepare)
        except BaseException:
            self._client.close()
            raise

    def _prepare(self) -> None:
        wanted = {"$setOnInsert": {"version": SCHEMA_VERSION}}
        self._meta.update_one({"_id": "schema"}, wanted, upsert=True)
        schema = self._meta.find_one({"_id": "schema"})
        if schema is None or schema["version"] != SCHEMA_VERSION:
            raise MetadataUnavailable(
                f"{self.name} has schema {schema and schema['version']}, this Forebay knows {SCHEMA_VERSION}",
                remedy="upgrade Forebay",
            )
        self._gc.update_one(
            {"_id": "state"}, {"$setOnInsert": {"run": 0, "phase": "idle", "since": _date(0)}}, upsert=True
        )
        self._pages.create_index("condemned", sparse=True)
        self._commits.create_index([("dataset", 1), ("_id", 1)])
        self._leases.create_index("expires")

    @property
    def name(self) -> str:
        return self._name

    def now_ms(self) -> int:
        return _ms(self._retrying(self._client.admin.command, "hello")["localTime"])

    def close(self) -> None:
        self._client.close()

    # --- Pages.

    def put_pages(self, pages: Sequence[tuple[PageId, bytes]]) -> int:
        updates = [
            UpdateOne(
                {"_id": Binary(name)},
                # The bytes are set again too: a page that was damaged is healed by whoever stores it anew.
                {
                    "$set": {"data": Binary(data), "size": len(data)},
                    "$currentDate": {"touched": True},
                    "$unset": {"condemned": ""},
                },
                upsert=True,
            )
            for name, data in pages
        ]
        if not updates:
            return 0
        return self._retrying(self._pages.bulk_write, updates, ordered=False).upserted_count

    def get_pages(self, ids: Sequence[PageId]) -> dict[PageId, bytes]:
        found: dict[PageId, bytes] = {}
        for some in _chunks(ids):
            documents = self._retrying(_find, self._pages, {"_id": {"$in": some}}, ("data",))
            found.update((bytes(d["_id"]), bytes(d["data"])) for d in documents)
        return found

    def touch_pages(self, ids: Sequence[PageId]) -> set[PageId]:
        missing = set(ids)
        for some in _chunks(ids):
            query: Document = {"_id": {"$in": some}}
            change: Document = {"$currentDate": {"touched": True}, "$unset": {"condemned": ""}}
            result = self._retrying(self._pages.update_many, query, change)
            # What was touched cannot be swept any more, so looking afterwards tells reliably what is there.
            if result.matched_count == len(some):
                missing.difference_update(bytes(name) for name in some)
            else:
                there = self._retrying(_find, self._pages, query, ("_id",))
                missing.difference_update(bytes(d["_id"]) for d in there)
        return missing

    def page_states(self) -> Iterator[PageState]:
        return self._walk(self._pages, {})

    def condemned_pages(self) -> Iterator[PageState]:
        return self._walk(self._pages, {"condemned": {"$gt": 0}})

    def _walk(self, collection: Collection[Document], condition: Document) -> Iterator[PageState]:
        """By ranges of ids rather than one cursor: a fail-over in the middle only repeats one range."""
        last: Any = None
        fields = ("touched", "condemned", "size")
        while True:
            query = condition if last is None else {**condition, "_id": {"$gt": last}}
            found = self._retrying(_find, collection, query, fields, _IDS_PER_CALL)
            if not found:
                return
            for d in found:
                yield PageState(bytes(d["_id"]), _ms(d["touched"]), d.get("condemned", 0), d["size"])
            last = found[-1]["_id"]

    def condemn_pages(self, ids: Sequence[PageId], run: int, not_after_ms: int) -> int:
        total = 0
        for some in _chunks(ids):
            query = {"_id": {"$in": some}, "touched": {"$lte": _date(not_after_ms)}}
            change = {"$set": {"condemned": run}}
            total += self._retrying(self._pages.update_many, query, change).matched_count
        return total

    def delete_condemned(self, ids: Sequence[PageId]) -> int:
        total = 0
        for some in _chunks(ids):
            query = {"_id": {"$in": some}, "condemned": {"$gt": 0}}
            total += self._retrying(self._pages.delete_many, query).deleted_count
        return total

    # --- Commits.

    def put_commit(self, commit_id: CommitId, dataset: str, data: bytes) -> None:
        change = {
            "$setOnInsert": {"dataset": dataset, "data": Binary(data), "size": len(data)},
            "$currentDate": {"touched": True},
        }
        self._retrying(self._commits.update_one, {"_id": Binary(commit_id)}, change, upsert=True)

    def get_commits(self, ids: Sequence[CommitId]) -> dict[CommitId, bytes]:
        found: dict[CommitId, bytes] = {}
        for some in _chunks(ids):
            documents = self._retrying(_find, self._commits, {"_id": {"$in": some}}, ("data",))
            found.update((bytes(d["_id"]), bytes(d["data"])) for d in documents)
        return found

    def find_commits(self, dataset: str, id_prefix: str, limit: int) -> list[CommitId]:
        low, high = (Binary(bytes.fromhex(id_prefix.ljust(64, digit))) for digit in "0f")
        query = {"dataset": dataset, "_id": {"$gte": low, "$lte": high}}
        found = self._retrying(_find, self._commits, query, ("_id",), limit)
        return [bytes(d["_id"]) for d in found]

    def commit_states(self) -> Iterator[PageState]:
        return self._walk(self._commits, {})

    def delete_commits(self, ids: Sequence[CommitId], not_after_ms: int) -> int:
        total = 0
        for some in _chunks(ids):
            query = {"_id": {"$in": some}, "touched": {"$lte": _date(not_after_ms)}}
            total += self._retrying(self._commits.delete_many, query).deleted_count
        return total

    # --- Datasets and refs.

    def create_dataset(self, name: str, description: str) -> bool:
        document: Document = {
            "_id": name,
            "created_ms": self.now_ms(),
            "description": description,
            "branches": {},
            "tags": {},
            "versions": [],
            "version_count": 0,
            "token": random.randbytes(16).hex(),
        }

        def insert() -> bool:
            try:
                self._datasets.insert_one(document)
            except pymongo.errors.DuplicateKeyError:
                # Ours, when an earlier try was applied and only its answer was lost.
                there = self._datasets.find_one({"_id": name}, {"token": 1})
                return there is not None and there.get("token") == document["token"]
            return True

        return self._retrying(insert)

    def delete_dataset(self, name: str) -> bool:
        return self._retrying(self._datasets.delete_one, {"_id": name}).deleted_count == 1

    def dataset_names(self) -> list[str]:
        found = self._retrying(_find, self._datasets, {}, ("_id",))
        return [d["_id"] for d in found]

    def dataset(self, name: str) -> DatasetRecord | None:
        found = self._retrying(self._datasets.find_one, {"_id": name}, {"versions": 0})
        if found is None:
            return None
        branches, tags = (
            {_from_field(ref): bytes(commit) for ref, commit in found[kind].items()} for kind in ("branches", "tags")
        )
        count = found["version_count"]
        return DatasetRecord(name, found["created_ms"], found["description"], branches, tags, count)

    def versions(self, name: str) -> list[CommitId]:
        found = self._retrying(self._datasets.find_one, {"_id": name}, {"versions": 1})
        return [bytes(commit) for commit in found["versions"]] if found else []

    def publish(self, dataset: str, branch: str, expected: CommitId | None, new: CommitId) -> Published | Moved:
        change = {"$push": {"versions": Binary(new)}, "$inc": {"version_count": 1}}
        outcome = self._swap(dataset, "branch", branch, expected, new, change)
        if isinstance(outcome, Moved) and outcome.current == new and new in (versions := self.versions(dataset)):
            return Published(len(versions) - versions[::-1].index(new))
        return outcome

    def set_ref(
        self, dataset: str, kind: str, name: str, expected: CommitId | None, new: CommitId | None
    ) -> Published | Moved:
        outcome = self._swap(dataset, kind, name, expected, new, {})
        if isinstance(outcome, Moved) and outcome.current == new:
            return Published()
        return outcome

    def _swap(
        self,
        dataset: str,
        kind: str,
        name: str,
        expected: CommitId | None,
        new: CommitId | None,
        more: Document,
    ) -> Published | Moved:
        field = f"{_FIELD[kind]}.{_to_field(name)}"
        query = {"_id": dataset, field: {"$exists": False} if expected is None else Binary(expected)}
        change = {"$unset": {field: ""}} if new is None else {"$set": {field: Binary(new)}}
        after = self._retrying(
            self._datasets.find_one_and_update,
            query,
            {**change, **more},
            projection={"version_count": 1},
            return_document=ReturnDocument.AFTER,
        )
        if after is not None:
            return Published(after["version_count"] if more else 0)
        record = self.dataset(dataset)
        if record is None:
            raise RefNotFound(f"there is no dataset {dataset!r} in {self.name}")
        return Moved((record.branches if kind == "branch" else record.tags).get(name))

    # --- Leases.

    def put_lease(self, lease: LeaseRecord, ttl_s: float) -> LeaseRecord:
        fields: Document = {
            "dataset": lease.dataset,
            "commit": Binary(lease.commit) if lease.commit else None,
            "purpose": lease.purpose,
            "what": lease.what,
            "owner": lease.owner,
            "host": lease.host,
            "pid": lease.pid,
        }
        # $literal: a text of the user that starts with a dollar sign is no expression.
        change = [
            {
                "$set": {
                    **{key: {"$literal": value} for key, value in fields.items()},
                    "started": {"$ifNull": ["$started", "$$NOW"]},
                    "expires": {"$add": ["$$NOW", int(ttl_s * 1000)]},
                }
            }
        ]
        self._retrying(self._leases.update_one, {"_id": lease.id}, change, upsert=True)
        stored = self._retrying(self._leases.find_one, {"_id": lease.id})
        if stored is None:
            raise MetadataUnavailable(f"the new lease {lease.id} is gone from {self.name} already")
        return _lease(stored)

    def renew_lease(self, lease_id: str, ttl_s: float) -> bool:
        query = {"_id": lease_id, "$expr": {"$gt": ["$expires", "$$NOW"]}}
        change = [{"$set": {"expires": {"$add": ["$$NOW", int(ttl_s * 1000)]}}}]
        return self._retrying(self._leases.update_one, query, change).matched_count == 1

    def drop_lease(self, lease_id: str, *, timeout_s: float | None = None) -> None:
        retrying = Retrying(self._name, min(self.timeout_s, timeout_s or self.timeout_s))
        retrying(self._leases.delete_one, {"_id": lease_id})

    def leases(self) -> list[LeaseRecord]:
        query = {"$expr": {"$gt": ["$expires", "$$NOW"]}}
        self._retrying(self._leases.delete_many, {"$expr": {"$lte": ["$expires", "$$NOW"]}})
        found = self._retrying(_find, self._leases, query)
        return sorted((_lease(d) for d in found), key=lambda lease: (lease.started_ms, lease.id))

    # --- State of gc.

    def gc_state(self) -> GcState:
        found = self._retrying(self._gc.find_one, {"_id": "state"})
        if found is None:
            raise MetadataUnavailable(f"{self.name} has lost its gc record", remedy="restore it from a backup")
        return GcState(run=found["run"], phase=found["phase"], since_ms=_ms(found["since"]))

    def set_gc_state(self, expected: GcState, run: int, phase: str) -> GcState | None:
        query = {"_id": "state", "run": expected.run, "phase": expected.phase, "since": _date(expected.since_ms)}
        change = {"$set": {"run": run, "phase": phase}, "$currentDate": {"since": True}}
        after = self._retrying(self._gc.find_one_and_update, query, change, return_document=ReturnDocument.AFTER)
        return None if after is None else GcState(run=after["run"], phase=after["phase"], since_ms=_ms(after["since"]))


def _find(
    collection: Collection[Document], query: Document, fields: tuple[str, ...] = (), limit: int = 0
) -> list[Document]:
    """All documents (or the first `limit`) in the order of their ids, with all fields or those named."""
    return list(collection.find(query, dict.fromkeys(fields, 1) or None).sort("_id", 1).limit(limit))


def _to_field(name: str) -> str:
    """Ref names may hold dots, field names may not; `%` is in no ref name."""
    return name.replace(".", "%")


def _from_field(name: str) -> str:
    return name.replace("%", ".")


def _chunks(ids: Sequence[bytes]) -> Iterator[list[Binary]]:
    for start in range(0, len(ids), _IDS_PER_CALL):
        yield [Binary(name) for name in ids[start : start + _IDS_PER_CALL]]


def _ms(date: datetime) -> int:
    return round(date.timestamp() * 1000)


def _date(ms: int) -> datetime:
    return datetime.fromtimestamp(ms / 1000, UTC)


def _lease(d: Document) -> LeaseRecord:
    return LeaseRecord(
        id=d["_id"],
        dataset=d["dataset"],
        commit=bytes(d["commit"]) if d["commit"] else None,
        purpose=d["purpose"],
        what=d["what"],
        owner=d["owner"],
        host=d["host"],
        pid=d["pid"],
        started_ms=_ms(d["started"]),
        expires_ms=_ms(d["expires"]),
    )
