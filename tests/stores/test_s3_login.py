"""Credentials, region and endpoint are found where AWS tools find them, and never shown."""

import hashlib
import os
import shutil
import ssl
import subprocess
from pathlib import Path

import pytest

from forebay.errors import StoreDenied, StoreUnavailable, UsageError
from forebay.tests.support.plain_s3 import ACCESS_KEY, SECRET_KEY, plain_s3
from forebay.tests.support.servers import unavailable
from forebay.tiers.stores import StoreOptions, open_store
from forebay.tiers.stores.s3.login import Credentials, Login, Place
from forebay.tiers.version import ObjectVersion


@pytest.fixture(autouse=True)
def nothing_from_outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No AWS setting of whoever runs the tests; returns the config file to write."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    return tmp_path / "config"


def write(path: Path, text: str) -> None:
    path.write_text(text)


def login(**options: object) -> Login:
    return Login("bucket", StoreOptions(**options))  # type: ignore[arg-type]


async def test_no_credentials_at_all_say_what_to_do() -> None:
    with pytest.raises(StoreDenied, match="AWS_ACCESS_KEY_ID"):
        await login().credentials()
    store, _ = open_store("s3://bucket")
    with pytest.raises(StoreDenied, match="no AWS credentials"):
        await store.check()
    await store.close()


async def test_a_profile_gives_credentials_region_and_endpoint(nothing_from_outside: Path) -> None:
    write(
        nothing_from_outside,
        "[profile lab]\nregion = eu-central-1\nservices = lab-services\n"
        "aws_access_key_id = lab-key\naws_secret_access_key = lab-secret\n"
        "[services lab-services]\ns3 =\n  endpoint_url = http://s3.lab:9000/\n",
    )
    found = login(profile="lab")
    assert found.region == "eu-central-1"
    assert found.place.url == "http://s3.lab:9000/bucket"
    assert found.store_id == "s3://bucket@s3.lab:9000"
    credentials = await found.credentials()
    assert credentials is not None
    assert credentials.access_key == "lab-key"
    assert "lab-key" not in repr(credentials) + str(credentials)
    assert "lab-secret" not in repr(credentials) + repr(found)


def test_an_unknown_profile_names_those_there_are(nothing_from_outside: Path) -> None:
    nothing_from_outside.write_text("[profile lab]\nregion = x\n")
    with pytest.raises(UsageError, match=r"'nope' does not exist; known profiles: .*lab"):
        login(profile="nope")


def test_the_option_beats_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://general:1")
    assert login().place.url == "http://general:1/bucket"
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://special:2")
    assert login().place.url == "http://special:2/bucket"
    assert login(endpoint_url="https://given").place.url == "https://given/bucket"
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    assert login().region == "eu-west-1"
    assert login(region="eu-west-2").region == "eu-west-2"


def test_an_endpoint_with_credentials_is_refused_without_showing_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://user:hidden@host")
    with pytest.raises(UsageError, match="carries credentials") as caught:
        login()
    assert "hidden" not in str(caught.value)


@pytest.mark.parametrize(
    ("bucket", "region", "url"),
    [
        ("bucket", None, "https://bucket.s3.us-east-1.amazonaws.com"),
        ("bucket", "eu-west-1", "https://bucket.s3.eu-west-1.amazonaws.com"),
        ("with.dots", "eu-west-1", "https://s3.eu-west-1.amazonaws.com/with.dots"),
        ("bucket", "cn-north-1", "https://bucket.s3.cn-north-1.amazonaws.com.cn"),
    ],
)
def test_places_at_amazon(bucket: str, region: str | None, url: str) -> None:
    found = Login(bucket, StoreOptions(region=region))
    assert found.place.url == url
    assert found.store_id == f"s3://{bucket}"


def test_ports_and_addresses_in_endpoints() -> None:
    assert login(endpoint_url="https://h:443").place.host == "h"
    assert login(endpoint_url="http://[::1]:9000").place.url == "http://[::1]:9000/bucket"
    assert login(endpoint_url="http://h/base/").place.url == "http://h/base/bucket"


def test_credentials_are_equal_by_value() -> None:
    assert Credentials("a", "b", None) == Credentials("a", "b", None) != Credentials("a", "c", None)


async def test_a_bucket_in_another_region_is_found_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Amazon tells the region in its refusal; here a server does that stands in for it."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
    monkeypatch.setenv("AWS_REGION", "us-west-1")
    async with plain_s3({"k": b"content", "a//b": b"odd"}) as server:
        server.region = "eu-north-1"
        monkeypatch.setattr(Login, "place", Place("http", server.url.removeprefix("http://"), "/bucket"))
        store, _ = open_store("s3://bucket", StoreOptions(timeout_s=30))
        try:
            version = ObjectVersion(store.id, "k", hashlib.md5(b"content").hexdigest(), 7)
            assert bytes(await store.get_range(version, 0, 7)) == b"content"
            assert (await store.list_page("")).keys == ["a//b", "k"]
        finally:
            await store.close()
        assert server.bad_signatures == []


def own_certificate(folder: Path) -> Path:
    """A certificate for localhost signed by nobody but itself, and its key, in one file."""
    openssl = shutil.which("openssl")
    if openssl is None:
        unavailable("openssl is not installed")
    both, key = folder / "both.pem", folder / "key.pem"
    subprocess.run(
        [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=DNS:localhost", "-addext", "basicConstraints=critical,CA:FALSE", "-keyout", str(key), "-out", str(both)],
        check=True, capture_output=True,
    )  # fmt: skip
    return both


async def test_certificates_are_checked_and_a_bundle_is_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate = own_certificate(tmp_path)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate, tmp_path / "key.pem")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
    async with plain_s3({"k": b"content"}, tls=tls) as server:
        options = StoreOptions(endpoint_url=server.url, timeout_s=2)
        version = ObjectVersion("s3://bucket", "k", hashlib.md5(b"content").hexdigest(), 7)
        store, _ = open_store("s3://bucket", options)
        with pytest.raises(StoreUnavailable, match="AWS_CA_BUNDLE"):
            await store.check()
        with pytest.raises(StoreUnavailable):
            await store.get_range(version, 0, 7)
        await store.close()
        monkeypatch.setenv("AWS_CA_BUNDLE", str(certificate))
        store, _ = open_store("s3://bucket", StoreOptions(endpoint_url=server.url, timeout_s=30))
        await store.check()
        assert bytes(await store.get_range(version, 0, 7)) == b"content"
        await store.close()


def test_a_bundle_that_is_not_there_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_CA_BUNDLE", "/no/such.pem")
    with pytest.raises(UsageError, match="AWS_CA_BUNDLE"):
        login()


async def test_nobody_listening_is_said_in_plain_words() -> None:
    store, _ = open_store("s3://bucket", StoreOptions(endpoint_url="http://127.0.0.1:1", anonymous=True, timeout_s=0.5))
    with pytest.raises(StoreUnavailable, match=r"Connection refused; check that a server listens at 127.0.0.1:1"):
        await store.check()
    await store.close()
