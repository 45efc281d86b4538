"""A bounded way to Vault or OpenBao: one token from a file, renewed in time; every error is ours.

The token file is read again when it changes (an agent may replace it) and when Vault refuses the
token. Time, retries and redirects are bounded; proxies and variables of the environment are ignored.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qsl, urlsplit

import hvac
import requests
from hvac import exceptions as vault
from pydantic import SecretStr
from requests.adapters import HTTPAdapter
from urllib3.util.retry import Retry

from tensorguard.crypto.files import read_bounded
from tensorguard.errors import TensorGuardError
from tensorguard.keys.provider import (
    PREFIX_PATTERN,
    KeyChanged,
    KeyCustodyDenied,
    KeyCustodyDown,
    KeyCustodySealed,
    KeyCustodyThrottled,
    KeyCustodyTimeout,
    KeyProviderUnusable,
)

MAX_TOKEN = 4096  # bytes
COMMIT_FAILED: Final = "transaction commit failed"
LOOK: Final = 1.0  # seconds between two looks at the token file
RENEW_AGAIN: Final = 10.0  # seconds after a renewal that failed
MOUNT: Final = 128  # characters of a mount path
OPTIONS: Final = frozenset({"kv", "prefix", "token-file", "namespace", "ca"})


class UnusableVaultUri(KeyProviderUnusable):
    code = "key_provider_uri"
    remedy = (
        "Write vault:https://HOST:PORT/TRANSIT-MOUNT?kv=KV2-MOUNT&token-file=/path/to/token, "
        "and optionally prefix, namespace and ca."
    )


class VaultRefused(KeyCustodyDown):
    """Vault said no to the request (HTTP 400 or 500); `reason` stays inside the provider."""

    code = "key_custody_refused"
    remedy = "Look at Vault's log: it refused what this process asked."

    def __init__(self, detail: str, *, reason: str = "") -> None:
        super().__init__(detail)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class VaultUri:
    """Where Vault is, which mounts are ours and where the token is."""

    url: str
    transit: str
    kv: str
    prefix: str
    token_file: Path
    namespace: str | None
    ca: Path | None


def parse(rest: str) -> VaultUri:
    """Read what follows `vault:`. Raises `UnusableVaultUri`."""
    parts = urlsplit(rest)
    loopback = parts.hostname in {"127.0.0.1", "::1", "localhost"}
    if parts.scheme != "https" and not (parts.scheme == "http" and loopback):
        raise UnusableVaultUri("the URL must be https")
    if not parts.hostname or parts.username is not None or parts.fragment:
        raise UnusableVaultUri("the URL names no host, or holds more than a URL may")
    options = parse_qsl(parts.query, keep_blank_values=True)
    given = dict(options)
    if len(given) != len(options) or not given.keys() <= OPTIONS:
        raise UnusableVaultUri(f"the options are {', '.join(sorted(OPTIONS))}, each once")
    token_file = Path(given.get("token-file", ""))
    if not token_file.is_absolute():
        raise UnusableVaultUri("token-file must be an absolute path; a token is never in the URI")
    prefix = given.get("prefix", "tensorguard")
    if not PREFIX_PATTERN.fullmatch(prefix):
        raise UnusableVaultUri("the prefix must be 1 to 32 of a-z, 0-9, _ and -")
    mounts = [parts.path.strip("/") or "transit", given.get("kv", "secret").strip("/")]
    for mount in mounts:
        if not 0 < len(mount) <= MOUNT or not all(map(PREFIX_PATTERN.fullmatch, mount.split("/"))):
            raise UnusableVaultUri("a mount is a path of a-z, 0-9, _ and -")
    ca = Path(given["ca"]) if "ca" in given else None
    if ca is not None and not ca.is_file():
        raise UnusableVaultUri(f"there is no CA file {ca}")
    url = f"{parts.scheme}://{parts.netloc}"
    return VaultUri(url, mounts[0], mounts[1], prefix, token_file, given.get("namespace"), ca)


def _session(uri: VaultUri) -> Any:
    retries = Retry(
        total=2,
        connect=2,
        read=False,  # what Vault may have done is not asked twice; the time-out shows as itself
        status=2,
        status_forcelist=(429, 502, 504),
        allowed_methods=None,
        backoff_factor=0.1,
        raise_on_status=False,
        respect_retry_after_header=False,
    )
    session = requests.Session()
    session.trust_env = False
    session.verify = str(uri.ca) if uri.ca else True
    for scheme in ("https://", "http://"):
        session.mount(scheme, HTTPAdapter(pool_maxsize=16, max_retries=retries))
    return session


class VaultClient:
    """Reads and writes paths of one Vault."""

    def __init__(
        self, uri: VaultUri, *, monotonic: Callable[[], float], timeout: float = 5.0
    ) -> None:
        self._uri, self._monotonic = uri, monotonic
        self._client = hvac.Client(
            url=uri.url,
            token="",
            namespace=uri.namespace,
            verify=str(uri.ca) if uri.ca else True,
            timeout=timeout,
            allow_redirects=False,
            session=_session(uri),
        )
        self._lock = threading.Lock()
        self._token = SecretStr("")
        self._look_at = self._renew_at = float("-inf")

    def read(self, path: str) -> dict[str, Any] | None:
        """Return the data at `path`, or None."""
        return _data(self._call(lambda: self._client.read(path)))

    def list(self, path: str) -> list[str]:
        """Return the names under `path`."""
        found = _data(self._call(lambda: self._client.list(path)))
        return [] if found is None else [str(name) for name in found.get("keys", [])]

    def write(self, path: str, data: Mapping[str, Any]) -> dict[str, Any]:
        """Write `data` to `path` and return what comes back. Raises `VaultRefused`."""
        return _data(self._call(lambda: self._client.write_data(path, data=dict(data)))) or {}

    def delete(self, path: str) -> None:
        """Delete `path`."""
        self._call(lambda: self._client.delete(path))

    def _call(self, call: Callable[[], Any]) -> Any:
        self._authenticate(again=False)
        try:
            return _translated(call)
        except KeyCustodyDenied:
            if not self._authenticate(again=True):
                raise
            return _translated(call)

    def _authenticate(self, *, again: bool) -> bool:
        """Read the token file if it is time; renew the token if it is. True for a new token."""
        with self._lock:
            moment, new = self._monotonic(), False
            if again or moment >= self._look_at:
                token = _token(self._uri.token_file)
                new = token.get_secret_value() != self._token.get_secret_value()
                self._look_at = moment + LOOK
                if new:
                    self._token, self._renew_at = token, moment
                    self._client.token = token.get_secret_value()
            if moment >= self._renew_at:
                self._renew_at = moment + self._renewed()
            return new

    def _renewed(self) -> float:
        """Renew the token; return the seconds until the next time: half of its life."""
        try:
            found = _data(_translated(self._client.auth.token.lookup_self)) or {}
            ttl = int(found.get("ttl") or 0)
            if ttl and found.get("renewable"):
                auth = _translated(self._client.auth.token.renew_self).get("auth") or {}
                ttl = int(auth.get("lease_duration") or ttl)
        except TensorGuardError:  # the token may still do what is asked; that call will tell
            return RENEW_AGAIN
        return max(ttl / 2, LOOK) if ttl else float("inf")


def _token(path: Path) -> SecretStr:
    try:
        raw = read_bounded(path, limit=MAX_TOKEN, private=True)
    except TensorGuardError as error:
        raise KeyProviderUnusable(f"the Vault token cannot be read: {error}") from error
    text = raw.decode("ascii", errors="replace").strip()
    if not text or not text.isprintable() or " " in text:
        raise KeyProviderUnusable("the Vault token file does not hold one token")
    return SecretStr(text)


def _data(answer: Any) -> dict[str, Any] | None:
    if not isinstance(answer, dict):  # hvac gives None for 404 and a response without a body
        return None
    data = answer.get("data")
    return data if isinstance(data, dict) else {}


def _translated(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except (vault.Forbidden, vault.Unauthorized) as error:
        raise KeyCustodyDenied("Vault denies this to our token") from error
    except (vault.VaultDown, vault.VaultNotInitialized) as error:
        raise KeyCustodySealed("Vault is sealed or not initialised") from error
    except vault.RateLimitExceeded as error:
        raise KeyCustodyThrottled("Vault limits the rate of calls") from error
    except (vault.InvalidRequest, vault.InternalServerError) as error:
        reason = " ".join(map(str, error.errors or [])) or str(error)
        if COMMIT_FAILED in f"{reason} {error}":  # of two writers at once, OpenBao fails one
            raise KeyChanged("someone else changed this key at the same time") from error
        raise VaultRefused("Vault refused the request", reason=reason) from error
    except vault.InvalidPath:
        return None
    except vault.VaultError as error:
        raise KeyCustodyDown("Vault failed") from error
    except requests.exceptions.Timeout as error:
        raise KeyCustodyTimeout("Vault did not answer in time") from error
    except (requests.exceptions.RequestException, OSError, ValueError) as error:
        raise KeyCustodyDown("Vault cannot be reached") from error
