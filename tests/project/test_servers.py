"""The real servers that other tests stand on do start here."""

from typing import Any

import pymongo

from forebay.tests.support.servers import MongoServer, S3Server


def test_s3_server_keeps_an_object(s3: S3Server) -> None:
    bucket = s3.new_bucket()
    s3.client().put_object(Bucket=bucket, Key="a/b", Body=b"bytes")
    assert s3.client().get_object(Bucket=bucket, Key="a/b")["Body"].read() == b"bytes"


def test_mongod_runs_transactions(mongo: MongoServer) -> None:
    client: pymongo.MongoClient[Any]
    with pymongo.MongoClient(mongo.url) as client, client.start_session() as session, session.start_transaction():
        things: pymongo.collection.Collection[Any] = client["probe"]["things"]
        things.insert_one({"_id": "a"}, session=session)
