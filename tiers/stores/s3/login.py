"""Who we are to S3 and where it is: credentials, region and endpoint, found in the usual AWS ways.

botocore's session knows them all (environment, profiles, config files, container and instance roles, SSO, processes),
so it is asked; nothing else of it is used, since a full client costs tens of megabytes and 2 ms of CPU per request.

Temporary credentials are refreshed by botocore; what it says is kept for at most KEEP_S, so that a mount that runs for
days follows rotation. After "denied" the session is made anew once (`renew`), since static keys in a file may have been
replaced. Credentials are held here and in request signatures only; nothing here logs or prints them.
"""

import asyncio
import os
import time
from dataclasses import dataclass, field
from urllib.parse import SplitResult, urlsplit

import botocore.exceptions
import botocore.session
from botocore.configprovider import ConfiguredEndpointProvider

from ....errors import StoreDenied, StoreUnavailable, UsageError
from ..options import StoreOptions, check_endpoint

KEEP_S = 60.0
DEFAULT_REGION = "us-east-1"


@dataclass(frozen=True, slots=True)
class Credentials:
    """`repr` shows none of it."""

    access_key: str = field(repr=False)
    secret_key: str = field(repr=False)
    token: str | None = field(repr=False)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a bucket is. `host` is what goes into the Host header; `base_path` precedes keys (empty or `/bucket`)."""

    scheme: str
    host: str
    base_path: str

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.host}{self.base_path}"


class Login:
    """Credentials, region and endpoint of one bucket. For one event loop."""

    def __init__(self, bucket: str, options: StoreOptions) -> None:
        """Reads the AWS configuration (files only, no network). Raises UsageError for an unknown profile or bad endpoint."""
        self.bucket = bucket
        self.anonymous = options.anonymous
        self._profile = options.profile
        self._session = self._new_session()
        self._lock = asyncio.Lock()
        self._kept: Credentials | None = None
        self._kept_until_s = 0.0
        endpoint = options.endpoint_url or self._configured_endpoint()
        if endpoint is not None:
            check_endpoint(endpoint)
        self.endpoint: SplitResult | None = urlsplit(endpoint.rstrip("/")) if endpoint else None
        configured = (
            options.region or os.environ.get("AWS_REGION") or self._session.get_config_variable("region") or None
        )
        self.region: str = configured or DEFAULT_REGION
        bundle = self._session.get_config_variable("ca_bundle")
        if bundle is not None and not os.path.isfile(bundle):
            raise UsageError(f"no such file: {bundle!r}, the bundle of certificates", remedy="correct AWS_CA_BUNDLE")
        self.ca_bundle: str | None = bundle
        # A configured region may be that of other buckets: Amazon says where this one is (see `Wire`).
        self.region_is_known = options.region is not None or endpoint is not None

    @property
    def store_id(self) -> str:
        """`s3://bucket`, with `@host:port` for an endpoint that is not AWS's own."""
        if self.endpoint is None or (self.endpoint.hostname or "").endswith((".amazonaws.com", ".amazonaws.com.cn")):
            return f"s3://{self.bucket}"
        return f"s3://{self.bucket}@{self.endpoint.netloc}"

    @property
    def place(self) -> Place:
        """Path-style at custom endpoints and for names with dots (no certificate covers those), else virtual-hosted."""
        if self.endpoint is not None:
            default_port = {"http": 80, "https": 443}[self.endpoint.scheme]
            host = self.endpoint.hostname or ""
            host = f"[{host}]" if ":" in host else host
            if self.endpoint.port not in (None, default_port):
                host += f":{self.endpoint.port}"
            return Place(self.endpoint.scheme, host, f"{self.endpoint.path}/{self.bucket}")
        suffix = "amazonaws.com.cn" if self.region.startswith("cn-") else "amazonaws.com"
        host = f"s3.{self.region}.{suffix}"
        if "." in self.bucket:
            return Place("https", host, f"/{self.bucket}")
        return Place("https", f"{self.bucket}.{host}", "")

    async def credentials(self) -> Credentials | None:
        """Valid credentials; None for anonymous requests. Raises StoreDenied when none are found anywhere."""
        if self.anonymous:
            return None
        if self._kept is not None and time.monotonic() < self._kept_until_s:
            return self._kept
        async with self._lock:  # one refresh however many ask; it may go over the network
            if self._kept is None or time.monotonic() >= self._kept_until_s:
                self._kept = await asyncio.to_thread(self._ask)
                self._kept_until_s = time.monotonic() + KEEP_S
            return self._kept

    async def renew(self, rejected: Credentials | None) -> bool:
        """Look for credentials anew after `rejected` were denied; whether there are other ones now."""
        if self.anonymous:
            return False
        if self._kept is rejected or self._kept is None:
            self._session = await asyncio.to_thread(self._new_session)
            self._kept = None
        return await self.credentials() != rejected

    def _new_session(self) -> botocore.session.Session:
        session = botocore.session.Session(profile=self._profile)
        try:
            session.get_scoped_config()
        except botocore.exceptions.ProfileNotFound as error:
            known = ", ".join(session.available_profiles) or "none"
            raise UsageError(
                f"AWS profile {self._profile or session.profile!r} does not exist", remedy=f"known profiles: {known}"
            ) from error
        except botocore.exceptions.BotoCoreError as error:
            raise UsageError(
                f"the AWS configuration cannot be read: {error}", remedy="correct ~/.aws/config"
            ) from error
        return session

    def _configured_endpoint(self) -> str | None:
        provider = ConfiguredEndpointProvider(self._session.full_config, self._session.get_scoped_config(), "s3")
        found = provider.provide()
        return str(found) if found else None

    def _ask(self) -> Credentials:
        try:
            found = self._session.get_credentials()
            frozen = found.get_frozen_credentials() if found is not None else None
        except botocore.exceptions.BotoCoreError as error:
            # The class only: messages of credential processes may quote what they got.
            raise StoreUnavailable(
                f"credentials could not be refreshed ({type(error).__name__})",
                remedy="check the AWS login of this host",
            ) from error
        if frozen is None or not frozen.access_key:
            raise StoreDenied(
                f"{self.store_id}: no AWS credentials found",
                remedy="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile; for a public bucket say --anonymous",
            )
        return Credentials(frozen.access_key, frozen.secret_key, frozen.token or None)
