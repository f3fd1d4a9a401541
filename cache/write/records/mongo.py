"""Records in MongoDB: for mounts that share what they write.

A store is three collections of one database, named after what is written to (`write.<name>.records` and so on). A
commit is one transaction with majority write concern, journalled:

    records   {_id: key, revision, body}    a removed key keeps a document without body for a day, so that
                                            `changes_since` can tell it
    inline    {_id: name, data}
    sequence  {_id: "sequence", value}      incremented first in every transaction: so transactions of two mounts
                                            conflict there, one retries, and sequence order is commit order

A transaction that fails transiently (conflict, election, lost connection) is run again until the deadline. A reply to
a commit that was lost is retried by the driver, which asks for the outcome of that same transaction. After a call that
had no answer the next ones wait `PROBE_S` only, until one has: so a queue of callers waits for one deadline, not for one each.

A process that is killed or suspended inside a transaction leaves it open, and its locks with it: the server ends it after a minute, in which
nobody else could commit. So who waits for `ABANDONED_S` ends those of this store that have been idle for so long. Their
owner, if it lives, runs them again.
"""

import contextlib
import datetime
import logging
import random
import time
from collections.abc import Iterator
from typing import Any, NoReturn

import pymongo
import pymongo.errors
from bson import Binary
from pymongo.client_session import ClientSession
from pymongo.collection import Collection
from pymongo.read_concern import ReadConcern
from pymongo.write_concern import WriteConcern

from ....errors import ConfigError, MetadataUnavailable
from .store import ABSENT, Batch, Changes, Record

logger = logging.getLogger(__name__)

TIMEOUT_S = 30.0
ABANDONED_S = 2.0
# Between tries of a transaction that lost to another, at most.
BACKOFF_S = 0.02
PROBE_S = 2.0
REMOVED_KEPT_S = 24 * 3600
DEFAULT_DATABASE = "forebay"


class MongoRecords:
    """Records of what is written to `name`, in the database that `url` names (default `forebay`).

    `url` may hold credentials: it is never shown; `label` names hosts and database. Raises ConfigError for an address that
    cannot be one, MetadataUnavailable when MongoDB does not answer within `timeout_s`.
    """

    def __init__(self, url: str, name: str, *, timeout_s: float = TIMEOUT_S) -> None:
        self._connect(url, name, timeout_s)
        try:
            with self._calling("open"):
                self._sequence.update_one({"_id": "sequence"}, {"$setOnInsert": {"value": 0}}, upsert=True)
                self._records.create_index("revision")
                self._records.create_index("removed_at", expireAfterSeconds=REMOVED_KEPT_S)
                # A collection cannot come into being inside a transaction on every server version.
                self._inline.create_index("_id")
        except MetadataUnavailable:
            self._client.close()
            raise

    def _connect(self, url: str, name: str, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._is_away = False
        # By it transactions of this store are told from others on the server.
        self._appname = f"forebay-write {name}".encode()[:128].decode(errors="ignore")
        try:
            self._client: pymongo.MongoClient[dict[str, Any]] = pymongo.MongoClient(
                url, appname=self._appname, serverSelectionTimeoutMS=int(timeout_s * 1000), tz_aware=True
            )
            database = self._client.get_default_database(DEFAULT_DATABASE)
        except (pymongo.errors.PyMongoError, ValueError) as error:
            # Not chained: what the driver says of a URL may quote it.
            raise ConfigError(
                f"the MongoDB address cannot be used ({type(error).__name__})",
                remedy="give mongodb://host/database?replicaSet=name",
            ) from None
        hosts = ",".join(
            sorted(f"{host}:{port}" for host, port in self._client.topology_description.server_descriptions())
        )
        self._label = f"MongoDB {hosts} database {database.name}"
        database = database.with_options(
            write_concern=WriteConcern("majority", j=True), read_concern=ReadConcern("majority")
        )
        self._records: Collection[dict[str, Any]] = database[f"write.{name}.records"]
        self._inline: Collection[dict[str, Any]] = database[f"write.{name}.inline"]
        self._sequence: Collection[dict[str, Any]] = database[f"write.{name}.sequence"]

    @classmethod
    def exists(cls, url: str, name: str, *, timeout_s: float = TIMEOUT_S) -> bool:
        """Whether anything was ever written to `name`. Makes nothing. Raises as opening does."""
        store = cls.__new__(cls)
        store._connect(url, name, timeout_s)
        try:
            with store._calling("read"):
                return store._sequence.find_one({"_id": "sequence"}) is not None
        finally:
            store.close()

    @property
    def label(self) -> str:
        return self._label

    @property
    def is_shared(self) -> bool:
        return True

    @property
    def changes_kept_s(self) -> float:
        return REMOVED_KEPT_S

    def load(self) -> tuple[int, Iterator[Record]]:
        # The sequence is read first: what is committed meanwhile is in the records and once more in changes_since.
        with self._calling("read"):
            sequence = self._present_sequence()
            found = self._records.find({"removed_at": None}, {"revision": 1, "body": 1})
            records = [_record(document) for document in found]
        return sequence, iter(records)

    def commit(self, batch: Batch) -> int | None:
        tries = 0
        next_look = time.monotonic() + ABANDONED_S

        def apply(session: ClientSession) -> int | None:
            nonlocal tries, next_look
            tries += 1
            if tries > 2:
                time.sleep(random.uniform(0, min(BACKOFF_S, 0.001 * tries)))
            if time.monotonic() > next_look:
                self._end_abandoned()
                next_look = time.monotonic() + ABANDONED_S
            return self._apply(batch, session)

        with self._calling("commit to"), self._client.start_session() as session:
            return session.with_transaction(apply)

    def changes_since(self, sequence: int) -> Changes:
        with self._calling("read"):
            present = self._present_sequence()
            if present == sequence:
                return Changes(present, [])
            # In one snapshot: of a node that is moved meanwhile the old place could be seen and the new one too, or neither.
            with self._client.start_session() as session:
                return session.with_transaction(
                    lambda inside: self._changes_in(sequence, inside), read_concern=ReadConcern("snapshot")
                )

    def _changes_in(self, sequence: int, session: ClientSession) -> Changes:
        present = self._present_sequence(session)
        found = self._records.find({"revision": {"$gt": sequence}}, session=session).sort("revision", 1)
        return Changes(present, [_record(document) for document in found])

    def inline(self, name: str) -> bytes | None:
        with self._calling("read"):
            document = self._inline.find_one({"_id": name})
        return None if document is None else bytes(document["data"])

    def inline_names(self) -> Iterator[str]:
        with self._calling("read"):
            return iter([document["_id"] for document in self._inline.find({}, {"_id": 1})])

    def close(self) -> None:
        self._client.close()

    def _end_abandoned(self) -> None:
        """End transactions of this store that nobody goes on with. Where that is not allowed the server's own limit has to be waited for."""
        operations: list[dict[str, Any]] = [
            {"$currentOp": {"allUsers": False, "idleSessions": True}},
            {
                "$match": {
                    "appName": self._appname,
                    "type": "idleSession",
                    "transaction.timeInactiveMicros": {"$gt": int(ABANDONED_S * 1_000_000)},
                }
            },
        ]
        try:
            with self._client.admin.aggregate(operations) as found:
                abandoned = [{"id": document["lsid"]["id"]} for document in found]
            if abandoned:
                self._client.admin.command("killSessions", abandoned)
                logger.warning("%s: ended %d transactions that their process has abandoned", self.label, len(abandoned))
        except pymongo.errors.OperationFailure as error:
            logger.warning("%s: abandoned transactions cannot be ended (error %s)", self.label, error.code)

    def _present_sequence(self, session: ClientSession | None = None) -> int:
        document = self._sequence.find_one({"_id": "sequence"}, session=session)
        return int(document["value"]) if document else 0

    def _apply(self, batch: Batch, session: ClientSession) -> int | None:
        counter = self._sequence.find_one_and_update(
            {"_id": "sequence"}, {"$inc": {"value": 1}}, return_document=pymongo.ReturnDocument.AFTER, session=session
        )
        assert counter is not None
        sequence = int(counter["value"])
        expected = {**batch.guards, **{change.key: change.expected for change in batch.changes}}
        keys = [Binary(key) for key in expected]
        found = {
            bytes(document["_id"]): int(document["revision"])
            for document in self._records.find(
                {"_id": {"$in": keys}, "removed_at": None}, {"revision": 1}, session=session
            )
        }
        is_late = batch.after is not None and batch.after != sequence - 1
        if is_late or any(found.get(key, ABSENT) != revision for key, revision in expected.items()):
            # Nothing is to happen: not even the sequence may move, or others would look for changes in vain.
            session.abort_transaction()
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

    @contextlib.contextmanager
    def _calling(self, action: str) -> Iterator[None]:
        """A call with its deadline; what goes wrong in it is MetadataUnavailable."""
        try:
            with pymongo.timeout(min(PROBE_S, self._timeout_s) if self._is_away else self._timeout_s):
                yield
        except pymongo.errors.PyMongoError as error:
            self._is_away = isinstance(error, pymongo.errors.ConnectionFailure) or error.timeout
            self._fail(action, error)
        self._is_away = False

    def _fail(self, action: str, error: pymongo.errors.PyMongoError) -> NoReturn:
        remedy = "check that MongoDB runs and can be reached"
        if isinstance(error, pymongo.errors.OperationFailure) and error.code in (13, 18):
            remedy = "check the user and password of the metadata URL and the user's roles"
        elif isinstance(error, pymongo.errors.OperationFailure) and error.code == 20:
            remedy = "transactions need a replica set; one member is enough"
        # Not chained: the driver's words may hold what the URL holds.
        raise MetadataUnavailable(f"cannot {action} {self._label}: {type(error).__name__}", remedy=remedy) from None


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
