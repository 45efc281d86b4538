"""A robot's identity: its key is made here and stays here; tokens are fetched with signed assertions.

    identity = DeviceIdentity.enrol(url=url, token=token, name="arm-7", folder=Path("identity"))
    identity = DeviceIdentity.load(Path("identity"))
    headers = {"Authorization": f"Bearer {identity.access_token()}"}
    gateway = InferenceClient(gateway_url, identity.serving_grant, ...)

The folder holds `device.key` (PKCS #8, 0600), `device.crt`, `ca.crt` and `device.json`, which is
written last: a folder without it is not enrolled.
"""

from __future__ import annotations

import ssl
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Annotated, Final, Self, TypeVar

import httpx
import jwt
import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from msgspec import Meta
from pydantic import BaseModel, ValidationError

from tensorguard import __version__
from tensorguard.crypto.files import private_folder, read_bounded, write_atomic
from tensorguard.errors import ConfigurationError, Conflict, NotFound, VerificationError
from tensorguard.identity import chain
from tensorguard.identity.profile import DeviceName
from tensorguard.sdk.transport import ServerUnreachable, checked_url
from tensorguard.wire import grants
from tensorguard.wire.devices import Enrolled, Redemption
from tensorguard.wire.oauth import ASSERTION_TYPE, CLIENT_CREDENTIALS, TokenResponse
from tensorguard.wire.problems import Problem, RemoteProblem

TIMEOUT: Final = 30.0  # seconds without a byte
MAX_ANSWER: Final = 64 * 1024  # bytes; an enrolment has about 3,000
MAX_FILE: Final = 16 * 1024  # bytes of any file in the folder
ASSERTION_SECONDS: Final = 30  # the platform takes 60; half is left to a clock that leads
RENEW_BEFORE: Final = 60.0  # seconds before a token's end
ATTEMPTS: Final = 3
WAIT: Final = 0.5  # seconds, times the attempts made
LONGEST_WAIT: Final = 10.0
RETRIED: Final = frozenset({429, 503})

Answer = TypeVar("Answer", bound=BaseModel)

KEY, CERTIFICATE, CA, RECORD = "device.key", "device.crt", "ca.crt", "device.json"


class AlreadyEnrolled(Conflict):
    code = "already_enrolled"
    remedy = "Use the identity in this folder, or enrol into an empty one."


class NotEnrolled(NotFound):
    code = "not_enrolled"
    remedy = "Run `tensorguard device enrol` first."


class IdentityUnusable(ConfigurationError):
    code = "device_identity"
    remedy = "Restore the identity folder, or enrol the device again into an empty one."


class AnswerRefused(VerificationError):
    code = "enrolment_answer"
    remedy = "Check the platform's URL; what answered is not a platform that enrolled this key."


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What `device.json` says."""

    device_id: grants.Id
    tenant: grants.Id
    fleet_id: grants.Id
    name: Annotated[str, Meta(max_length=64)]
    platform_url: Annotated[str, Meta(max_length=512)]
    token_endpoint: Annotated[str, Meta(max_length=512)]


@dataclass(frozen=True, slots=True)
class _Held:
    value: str
    ends: float  # on the monotonic clock


def _now() -> datetime:
    return datetime.now(UTC)


def http_client(
    *, verify: ssl.SSLContext | None = None, transport: httpx.BaseTransport | None = None
) -> httpx.Client:
    """Return a client that follows no redirect and reads no environment."""
    return httpx.Client(
        timeout=TIMEOUT,
        verify=verify if verify is not None else True,
        transport=transport,
        trust_env=False,
        headers={"User-Agent": f"tensorguard-sdk/{__version__}"},
    )


class DeviceIdentity:
    """One enrolled device. Its methods may be called from several threads."""

    def __init__(
        self,
        record: Record,
        key: ec.EllipticCurvePrivateKey,
        *,
        http: httpx.Client | None = None,
        now: Callable[[], datetime] = _now,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.record = record
        self._key = key
        self._http = http or http_client()
        self._now, self._monotonic, self._sleep = now, monotonic, sleep
        self._lock = Lock()
        self._held: dict[str, _Held] = {}

    @property
    def device_id(self) -> str:
        """The platform's id of this device."""
        return self.record.device_id

    @classmethod
    def enrol(
        cls,
        *,
        url: str,
        token: str,
        name: str,
        folder: Path,
        http: httpx.Client | None = None,
        now: Callable[[], datetime] = _now,
    ) -> Self:
        """Make a P-256 key, redeem the one-time token with it, and keep the identity in `folder`.

        Raises `AlreadyEnrolled`, `RemoteProblem`, `ServerUnreachable`, `InsecureUrl` or
        `AnswerRefused`. After a failure the folder is not enrolled and the key is never used.
        """
        platform = checked_url(url)
        private_folder(folder)
        if (folder / RECORD).exists():
            raise AlreadyEnrolled(f"{folder} holds the identity of a device")
        key = ec.generate_private_key(ec.SECP256R1())
        client = http or http_client()
        request = Redemption(token=token, csr_pem=_csr(key, name), name=name)
        write_atomic(folder / KEY, _private_pem(key))
        answer = _post(
            client,
            f"{platform}/api/v1/enrolments/redeem",
            content=request.model_dump_json().encode(),
            media="application/json",
        )
        enrolled = _read(answer, Enrolled)
        _check_answer(enrolled, key)
        record = Record(
            device_id=enrolled.device_id,
            tenant=enrolled.tenant,
            fleet_id=enrolled.fleet_id,
            name=name,
            platform_url=platform,
            token_endpoint=checked_url(enrolled.token_endpoint),
        )
        write_atomic(folder / CERTIFICATE, enrolled.certificate_pem.encode())
        write_atomic(folder / CA, enrolled.ca_pem.encode())
        write_atomic(folder / RECORD, msgspec.json.format(msgspec.json.encode(record)))
        return cls(record, key, http=client, now=now)

    @classmethod
    def load(
        cls,
        folder: Path,
        *,
        http: httpx.Client | None = None,
        now: Callable[[], datetime] = _now,
    ) -> Self:
        """Open an enrolled folder. Raises `NotEnrolled` or `IdentityUnusable`."""
        if not (folder / RECORD).exists():
            raise NotEnrolled(f"{folder} holds no device identity")
        try:
            record = msgspec.json.decode(read_bounded(folder / RECORD, limit=MAX_FILE), type=Record)
            pem = read_bounded(folder / KEY, limit=MAX_FILE, private=True)
            key = serialization.load_pem_private_key(pem, password=None)
        except (msgspec.DecodeError, ValueError, TypeError, NotFound) as error:
            raise IdentityUnusable(f"the identity in {folder} cannot be read") from error
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise IdentityUnusable(f"{folder / KEY} is no P-256 key")
        checked_url(record.token_endpoint)
        return cls(record, key, http=http, now=now)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def assertion(self) -> str:
        """Return a fresh `private_key_jwt` (RFC 7523) for the token endpoint, good for one use."""
        issued = int(self._now().timestamp())
        claims = {
            "iss": self.record.device_id,
            "sub": self.record.device_id,
            "aud": self.record.token_endpoint,
            "iat": issued,
            "exp": issued + ASSERTION_SECONDS,
            "jti": uuid.uuid4().hex,
        }
        return jwt.encode(claims, self._key, algorithm="ES256")

    def access_token(self) -> str:
        """Return a bearer token for the platform, renewed before it ends."""
        return self._token("", {})

    def serving_grant(self) -> str:
        """Return a grant for the gateway, renewed before it ends."""
        return self._token(grants.AUDIENCE, {"resource": grants.AUDIENCE, "scope": grants.SCOPE})

    def forget_tokens(self) -> None:
        """Ask anew next time: after a server refused a token, or a pack was registered."""
        with self._lock:
            self._held.clear()

    def _token(self, target: str, more: Mapping[str, str]) -> str:
        with self._lock:
            held = self._held.get(target)
            if held is None or self._monotonic() >= held.ends - RENEW_BEFORE:
                began = self._monotonic()
                response = self._ask(more)
                held = _Held(response.access_token, began + response.expires_in)
                self._held[target] = held
            return held.value

    def _ask(self, more: Mapping[str, str]) -> TokenResponse:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return self._ask_once(more)
            except ServerUnreachable:
                if attempt == ATTEMPTS:
                    raise
                wait = WAIT * attempt
            except RemoteProblem as error:
                wait = WAIT * attempt if error.retry_after is None else float(error.retry_after)
                if error.status not in RETRIED or attempt == ATTEMPTS or wait > LONGEST_WAIT:
                    raise
            self._sleep(wait)
        raise ServerUnreachable("no attempt is left")  # the loop has returned or raised before

    def _ask_once(self, more: Mapping[str, str]) -> TokenResponse:
        form = {
            "grant_type": CLIENT_CREDENTIALS,
            "client_assertion_type": ASSERTION_TYPE,
            "client_assertion": self.assertion(),  # a fresh one each time: each works once
            **more,
        }
        content = str(httpx.QueryParams(form)).encode()
        media = "application/x-www-form-urlencoded"
        answer = _post(self._http, self.record.token_endpoint, content=content, media=media)
        return _read(answer, TokenResponse)


def _csr(key: ec.EllipticCurvePrivateKey, name: str) -> str:
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject)
    return request.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()


def _private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),  # the file is 0600; a robot has nobody to type a password
    )


def _check_answer(enrolled: Enrolled, key: ec.EllipticCurvePrivateKey) -> None:
    leaf, root = chain.load(enrolled.certificate_pem), chain.load(enrolled.ca_pem)
    # Checked at the leaf's own beginning: whether this robot's clock is right shows at the first token.
    name = chain.verify(leaf, root, now=leaf.not_valid_before_utc)
    if name != DeviceName(enrolled.tenant, enrolled.device_id):
        raise AnswerRefused("the certificate names another device")
    if leaf.public_key() != key.public_key():
        raise AnswerRefused("the certificate is for another key")


def _post(client: httpx.Client, url: str, *, content: bytes, media: str) -> bytes:
    body = bytearray()
    try:
        with client.stream("POST", url, content=content, headers={"Content-Type": media}) as answer:
            for chunk in answer.iter_bytes():
                body += chunk
                if len(body) > MAX_ANSWER:
                    raise AnswerRefused(f"the platform's answer is over {MAX_ANSWER} bytes")
    except httpx.RequestError as error:
        raise ServerUnreachable(f"{url} does not answer: {type(error).__name__}") from error
    if not answer.is_success:
        raise RemoteProblem(
            Problem.from_response(
                bytes(body),
                status=answer.status_code,
                retry_after=answer.headers.get("retry-after"),
            )
        )
    return bytes(body)


def _read(body: bytes, kind: type[Answer]) -> Answer:
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        raise AnswerRefused(f"the platform's answer is no {kind.__name__}") from error
