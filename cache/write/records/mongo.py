"""Records in MongoDB: for mounts that share what they write.

Each store is one database. A commit is one transaction with majority write concern, journalled:

    records   {_id: key, revision, body}    a removed key keeps a document without body for a day, so that
                                            `changes_since` can tell it
    inline    {_id: name, data}
    sequence  {_id: "sequence", value}      incremented first in every transaction: so transactions of two mounts
                                            conflict there, one retries, and sequence order is commit order

A transaction that fails transiently (conflict, election, lost connection) is run again until the deadline. A reply to
a commit that was lost is retried by the driver, which asks for the outcome of that same transaction.
"""

import datetime
from collections.abc import Iterator
from typing import Any, NoReturn

import pymongo
import pymongo.errors
from bson import Binary
from pymongo.client_session import ClientSession
from pymongo.collection import Collection
from pymongo.read_concern import ReadConcern
from pymongo.write_concern import WriteConcern

from ....errors import MetadataUnavailable
from .store import ABSENT, Batch, Changes, Record

TIMEOUT_S = 30.0
REMOVED_KEPT_S = 24 * 3600


class MongoRecords:
    """`url` may hold credentials: it is never shown; `label` names hosts and database."""

    def __init__(self, url: str, database: str, *, timeout_s: float = TIMEOUT_S) -> None:
        self._timeout_s = timeout_s
        try:
            self._client: pymongo.MongoClient[dict[str, Any]] = pymongo.MongoClient(
                url, serverSelectionTimeoutMS=int(timeout_s * 1000), timeoutMS=int(timeout_s * 1000), tz_aware=True
            )
        except pymongo.errors.PyMongoError as error:
            raise MetadataUnavailable(
                "the MongoDB address cannot be used", remedy="give mongodb://host/?replicaSet=name"
            ) from error
        hosts = ",".join(
            sorted(f"{host}:{port}" for host, port in self._client.topology_description.server_descriptions())
        )
        self._label = f"MongoDB {hosts} database {database}"
        self._database = self._client.get_database(
            database,
            write_concern=WriteConcern("majority", j=True),
            read_concern=ReadConcern("majority"),
        )
        self._records: Collection[dict[str, Any]] = self._database["records"]
        self._inline: Collection[dict[str, Any]] = self._database["inline"]
        self._sequence: Collection[dict[str, Any]] = self._database["sequence"]
        try:
            self._sequence.update_one({"_id": "sequence"}, {"$setOnInsert": {"value": 0}}, upsert=True)
            self._records.create_index("revision")
            self._records.create_index("removed_at", expireAfterSeconds=REMOVED_KEPT_S)
            # A collection cannot come into being inside a transaction on every server version.
            self._inline.create_index("_id")
        except pymongo.errors.PyMongoError as error:
            self._client.close()
            self._fail("open", error)

    @property
    def label(self) -> str:
        return self._label

    @property
    def is_shared(self) -> bool:
        return True

    def load(self) -> tuple[int, Iterator[Record]]:
        # The sequence is read first: what is committed meanwhile is in the records and once more in changes_since.
        try:
            sequence = self._present_sequence()
            found = self._records.find({"removed_at": None}, {"revision": 1, "body": 1})
            records = [_record(document) for document in found]
        except pymongo.errors.PyMongoError as error:
            self._fail("read", error)
        return sequence, iter(records)

    def commit(self, batch: Batch) -> int | None:
        try:
            with self._client.start_session() as session:
                return session.with_transaction(lambda inside: self._apply(batch, inside))
        except pymongo.errors.PyMongoError as error:
            self._fail("commit to", error)

    def changes_since(self, sequence: int) -> Changes:
        try:
            present = self._present_sequence()
            if present == sequence:
                return Changes(present, [])
            found = self._records.find({"revision": {"$gt": sequence, "$lte": present}}).sort("revision", 1)
            return Changes(present, [_record(document) for document in found])
        except pymongo.errors.PyMongoError as error:
            self._fail("read", error)

    def inline(self, name: str) -> bytes | None:
        try:
            document = self._inline.find_one({"_id": name})
        except pymongo.errors.PyMongoError as error:
            self._fail("read", error)
        return None if document is None else bytes(document["data"])

    def inline_names(self) -> Iterator[str]:
        try:
            return iter([document["_id"] for document in self._inline.find({}, {"_id": 1})])
        except pymongo.errors.PyMongoError as error:
            self._fail("read", error)

    def close(self) -> None:
        self._client.close()

    def _present_sequence(self) -> int:
        document = self._sequence.find_one({"_id": "sequence"})
        return int(document["value"]) if document else 0

    def _apply(self, batch: Batch, session: ClientSession) -> int | None:
        counter = self._sequence.find_one_and_update(
            {"_id": "sequence"}, {"$inc": {"value": 1}}, return_document=pymongo.ReturnDocument.AFTER, session=session
        )
        assert counter is not None
        sequence = int(counter["value"])
        keys = [Binary(change.key) for change in batch.changes]
        found = {
            bytes(document["_id"]): int(document["revision"])
            for document in self._records.find(
                {"_id": {"$in": keys}, "removed_at": None}, {"revision": 1}, session=session
            )
        }
        if any(found.get(change.key, ABSENT) != change.expected for change in batch.changes):
            return None
        if batch.changes:
            self._records.bulk_write(
                [_write_of(change.key, change.body, sequence) for change in batch.changes], session=session
            )
        if batch.drop_inline:
            self._inline.delete_many({"_id": {"$in": list(batch.drop_inline)}}, session=session)
        for name, data in batch.put_inline.items():
            self._inline.replace_one({"_id": name}, {"data": Binary(data)}, upsert=True, session=session)
        return sequence

    def _fail(self, action: str, error: pymongo.errors.PyMongoError) -> NoReturn:
        raise MetadataUnavailable(
            f"cannot {action} {self._label}: {type(error).__name__}",
            remedy="check that MongoDB runs and can be reached",
        ) from error


def _record(document: dict[str, Any]) -> Record:
    body = document.get("body")
    return Record(bytes(document["_id"]), int(document["revision"]), None if body is None else bytes(body))


def _write_of(key: bytes, body: bytes | None, sequence: int) -> pymongo.ReplaceOne[dict[str, Any]]:
    document: dict[str, Any] = {"revision": sequence}
    if body is None:
        document["removed_at"] = datetime.datetime.now(datetime.UTC)
    else:
        document["body"] = Binary(body)
    return pymongo.ReplaceOne({"_id": Binary(key)}, document, upsert=True)
