"""What every record store must do, and what SQLite and MongoDB do each in their way."""

import itertools
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pymongo
import pymongo.errors
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from forebay.cache.write.records import ABSENT, Batch, Change, Record, Records, SqliteRecords
from forebay.cache.write.records.mongo import MongoRecords
from forebay.cache.write.records.sqlite import RESERVE_BYTES
from forebay.errors import MetadataUnavailable
from forebay.tests.support.servers import MongoServer

_databases = itertools.count()
Opener = Callable[[], Records]


@pytest.fixture(params=["sqlite", "mongo"])
def opener(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Opener]:
    opened: list[Records] = []
    name = f"records_{next(_databases)}"

    def open_again() -> Records:
        store: Records
        if request.param == "sqlite":
            for previous in opened:
                previous.close()  # one process, one opening
            store = SqliteRecords(tmp_path / "records.db")
        else:
            server: MongoServer = request.getfixturevalue("mongo")
            store = MongoRecords(server.url, name)
        opened.append(store)
        return store

    yield open_again
    for store in opened:
        store.close()


@pytest.fixture
def records(opener: Opener) -> Records:
    return opener()


def put(key: bytes, body: bytes, expected: int = ABSENT) -> Batch:
    return Batch([Change(key, expected, body)])


def contents(records: Records) -> dict[bytes, bytes | None]:
    return {record.key: record.body for record in records.load()[1]}


def test_a_batch_is_there_after_reopening(opener: Opener) -> None:
    records = opener()
    sequence = records.commit(Batch([Change(b"a", ABSENT, b"1"), Change(b"\xff\0", ABSENT, b"2")], {"i": b"data"}))
    assert sequence is not None
    again = opener()
    found, loaded = again.load()
    assert found >= sequence
    assert sorted(loaded, key=lambda r: r.key) == [Record(b"a", sequence, b"1"), Record(b"\xff\0", sequence, b"2")]
    assert again.inline("i") == b"data"
    assert list(again.inline_names()) == ["i"]
    assert again.inline("j") is None


def test_a_stale_batch_changes_nothing_at_all(records: Records) -> None:
    first = records.commit(put(b"a", b"1"))
    assert first is not None
    stale = Batch([Change(b"b", ABSENT, b"x"), Change(b"a", first + 1, b"2")], {"i": b"data"})
    assert records.commit(stale) is None
    assert contents(records) == {b"a": b"1"}
    assert records.inline("i") is None


def test_each_expectation_is_checked(records: Records) -> None:
    first = records.commit(put(b"a", b"1"))
    assert first is not None
    assert records.commit(put(b"a", b"2")) is None
    second = records.commit(put(b"a", b"2", first))
    assert second is not None
    assert records.commit(put(b"a", b"3", first)) is None
    removed = records.commit(Batch([Change(b"a", second, None)]))
    assert removed is not None
    assert contents(records) == {}
    assert records.commit(Batch([Change(b"a", second, None)])) is None
    assert records.commit(put(b"a", b"again")) is not None


def test_a_large_batch_is_applied_or_refused_whole(records: Records) -> None:
    keys = [b"%05d" % number for number in range(1000)]
    first = records.commit(Batch([Change(key, ABSENT, key) for key in keys], {f"i{n}": b"%d" % n for n in range(300)}))
    assert first is not None
    stale = [Change(key, first, b"new") for key in keys[:-1]] + [Change(keys[-1], ABSENT, b"new")]
    assert records.commit(Batch(stale)) is None
    assert contents(records) == {key: key for key in keys}
    second = records.commit(
        Batch(
            [Change(key, first, None if number % 2 else b"new") for number, key in enumerate(keys)],
            {},
            [f"i{n}" for n in range(0, 300, 3)],
        )
    )
    assert second is not None
    assert contents(records) == dict.fromkeys(keys[::2], b"new")
    assert sorted(records.inline_names()) == sorted(f"i{n}" for n in range(300) if n % 3)


def test_inline_data_is_replaced_and_dropped(records: Records) -> None:
    records.commit(Batch([], {"i": b"1", "j": b"2"}))
    records.commit(Batch([], {"i": b"3"}, ["j", "never-was"]))
    assert records.inline("i") == b"3"
    assert records.inline("j") is None


def test_changes_since_tells_what_others_did(opener: Opener) -> None:
    ours = opener()
    if not ours.is_shared:
        pytest.skip("an embedded store has nobody else")
    theirs = opener()
    first = ours.commit(put(b"a", b"1"))
    assert first is not None
    start, _ = theirs.load()
    second = ours.commit(Batch([Change(b"a", first, None), Change(b"b", ABSENT, b"2")]))
    assert second is not None
    changes = theirs.changes_since(start)
    assert sorted(changes.records, key=lambda r: r.key) == [Record(b"a", second, None), Record(b"b", second, b"2")]
    assert changes.sequence == second
    assert theirs.changes_since(changes.sequence).records == []


def test_exactly_one_of_many_racers_wins(opener: Opener) -> None:
    first = opener()
    stores = [first, opener(), opener()] if first.is_shared else [first, first, first]
    wins: list[int] = []

    def race(index: int, store: Records) -> None:
        for turn in range(8):
            if store.commit(put(b"prize-%d" % turn, b"%d" % index)) is not None:
                wins.append(turn)

    threads = [threading.Thread(target=race, args=item) for item in enumerate(stores)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(wins) == list(range(8))


KEYS = [b"a", b"b", b"c"]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    steps=st.lists(
        st.lists(st.tuples(st.sampled_from(KEYS), st.booleans(), st.none() | st.binary(max_size=3)), max_size=3),
        max_size=6,
    )
)
def test_commits_match_a_dict(records: Records, steps: list[list[tuple[bytes, bool, bytes | None]]]) -> None:
    model = {record.key: (record.revision, record.body) for record in records.load()[1]}
    for step in steps:
        unique = {key: (right, body) for key, right, body in step}
        batch = Batch(
            [
                Change(key, model.get(key, (ABSENT, None))[0] + (0 if right else 1_000_000), body)
                for key, (right, body) in unique.items()
            ]
        )
        outcome = records.commit(batch)
        if all(right for right, _ in unique.values()):
            assert outcome is not None
            for change in batch.changes:
                model.pop(change.key, None)
                if change.body is not None:
                    model[change.key] = (outcome, change.body)
        else:
            assert outcome is None
        assert {r.key: (r.revision, r.body) for r in records.load()[1]} == model


def test_sqlite_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    import sqlite3

    connection = sqlite3.connect(tmp_path / "r.db")
    connection.execute("PRAGMA user_version=99")
    connection.close()
    with pytest.raises(MetadataUnavailable, match="format 99"):
        SqliteRecords(tmp_path / "r.db")


def test_sqlite_gives_space_back(tmp_path: Path) -> None:
    store = SqliteRecords(tmp_path / "r.db")
    names = [f"n{index}" for index in range(1000)]
    store.commit(Batch([], dict.fromkeys(names, b"x" * 32768)))
    for name in names:
        store.commit(Batch([], {}, [name]))
    store.close()
    assert (tmp_path / "r.db").stat().st_size < 24_000_000


def test_an_absent_mongod_is_named_without_credentials() -> None:
    with pytest.raises(MetadataUnavailable) as caught:
        MongoRecords("mongodb://user:secret-word@127.0.0.1:1/?replicaSet=rs0", "x", timeout_s=0.5)
    assert "127.0.0.1:1" in str(caught.value)
    assert "secret-word" not in str(caught.value)


def test_guards_must_hold_and_stay_as_they_are(records: Records) -> None:
    first = records.commit(put(b"a", b"1"))
    assert first is not None
    assert records.commit(Batch([Change(b"b", ABSENT, b"x")], guards={b"a": first + 7})) is None
    assert records.commit(Batch([Change(b"b", ABSENT, b"x")], guards={b"c": first})) is None
    assert contents(records) == {b"a": b"1"}
    second = records.commit(Batch([Change(b"b", ABSENT, b"x")], guards={b"a": first, b"c": ABSENT}))
    assert second is not None
    changed = records.changes_since(first)
    assert changed.sequence == second
    assert [record.key for record in changed.records] == [b"b"]


def test_the_log_of_sqlite_is_lengthened_ahead_and_read_back(tmp_path: Path) -> None:
    path = tmp_path / "records.db"
    store = SqliteRecords(path)
    store.commit(put(b"a", b"1"))
    log = Path(f"{path}-wal").read_bytes()
    assert len(log) >= RESERVE_BYTES
    # As after kill -9: a log whose end are zeros.
    (tmp_path / "copy.db").write_bytes(path.read_bytes())
    (tmp_path / "copy.db-wal").write_bytes(log)
    store.close()
    copy = SqliteRecords(tmp_path / "copy.db")
    assert contents(copy) == {b"a": b"1"}
    copy.close()


def test_a_transaction_that_a_killed_process_left_open_holds_nobody_up_for_long(mongo: MongoServer) -> None:
    name = f"abandoned-{os.getpid()}"
    records = MongoRecords(mongo.url, name)
    with pymongo.MongoClient[dict[str, object]](mongo.url, appname=f"forebay-write {name}") as killed:
        session = killed.start_session()
        session.start_transaction()
        sequence = killed.get_database("forebay")[f"write.{name}.sequence"]
        sequence.update_one({"_id": "sequence"}, {"$inc": {"value": 1}}, session=session)
        assert records.commit(put(b"a", b"1")) == 1  # else the server ends it after 60 s, and this fails after 30
        with pytest.raises(pymongo.errors.OperationFailure):
            session.commit_transaction()
        session.end_session()
    assert contents(records) == {b"a": b"1"}
    records.close()
