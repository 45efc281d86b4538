"""The way to the platform: enrolled when it must be, then an authenticated connection for batches."""

from __future__ import annotations

import gzip
import ssl
from collections.abc import Callable
from typing import Final, Protocol, Self

import httpx

from tensorguard import __version__
from tensorguard.agent.config import AgentConfig
from tensorguard.agent.spool import Batch
from tensorguard.sdk.device import RECORD, DeviceIdentity, NotEnrolled
from tensorguard.sdk.telemetry import post_batch
from tensorguard.sdk.token_files import read_token
from tensorguard.sdk.transport import ServerUnreachable, checked_url
from tensorguard.wire.problems import RemoteProblem
from tensorguard.wire.telemetry import Answer

SECONDS: Final = 15.0  # without a byte
COMPRESS_FROM: Final = 1024  # bytes
UNAUTHENTICATED: Final = 401


class Link(Protocol):
    """Carries one batch to the platform."""

    def send(self, batch: Batch) -> Answer:
        """Send it once. Raises `RemoteProblem`, `ServerUnreachable` and the identity's errors."""

    def close(self) -> None:
        """Close the connections."""


class PlatformLink:
    """A link of an enrolled device."""

    def __init__(
        self,
        identity: DeviceIdentity,
        *,
        verify: ssl.SSLContext | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._identity = identity
        self._client = httpx.Client(
            base_url=checked_url(identity.record.platform_url),
            timeout=SECONDS,
            verify=verify if verify is not None else True,
            trust_env=False,
            transport=transport,
            headers={"User-Agent": f"tensorguard-agent/{__version__}"},
        )

    @classmethod
    def open(cls, config: AgentConfig) -> Self:
        """Load the identity, or enrol with the token that was given."""
        return cls(identity_of(config))

    def send(self, batch: Batch) -> Answer:
        """Send a batch with its key; a refused token is fetched anew once."""
        body, encoding = batch.body, None
        if len(body) >= COMPRESS_FROM:
            body, encoding = gzip.compress(body, 1, mtime=0), "gzip"
        try:
            try:
                token = self._identity.access_token()
                return post_batch(self._client, token, body, key=batch.key, encoding=encoding)
            except RemoteProblem as problem:
                if problem.status != UNAUTHENTICATED:
                    raise
            self._identity.forget_tokens()
            token = self._identity.access_token()
            return post_batch(self._client, token, body, key=batch.key, encoding=encoding)
        except httpx.TransportError as error:
            raise ServerUnreachable(
                f"{self._client.base_url} does not answer: {type(error).__name__}"
            ) from error

    def close(self) -> None:
        """Close the connections."""
        self._client.close()
        self._identity.close()


def is_enrolled(config: AgentConfig) -> bool:
    """Whether the agent has an identity already."""
    return (config.identity / RECORD).exists()


def require_enrolment(config: AgentConfig) -> None:
    """Raise `NotEnrolled` if the agent neither has an identity nor what it takes to get one."""
    if not is_enrolled(config) and not (config.url and config.name and config.token_file):
        raise NotEnrolled(
            f"{config.identity} holds no identity, and TG_AGENT_URL, TG_AGENT_NAME and "
            "TG_AGENT_TOKEN_FILE are not all set"
        )


def identity_of(config: AgentConfig) -> DeviceIdentity:
    """Return the agent's identity, enrolling it the first time."""
    require_enrolment(config)
    if is_enrolled(config) or not (config.url and config.name and config.token_file):
        return DeviceIdentity.load(config.identity)
    return DeviceIdentity.enrol(
        url=config.url,
        token=read_token(config.token_file),
        name=config.name,
        folder=config.identity,
    )


Opener = Callable[[], Link]
