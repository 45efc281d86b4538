"""The only reader of the environment: one table of variables, one frozen object.

Unset `TG_ENVIRONMENT` means production. Secrets have no default and never print. A variable that
cannot be read does not raise here: it is recorded in `Settings.malformed`, so that the gates can
report every fault of a configuration at once.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pydantic import SecretBytes, SecretStr

from tensorguard.errors import ConfigurationError

MAX_VARIABLE = 64 * 1024  # nothing we read from the environment is longer
MAX_THREADS = 64  # per request: a ring has fewer primes, which are what threads share out
MAX_PORT = 65535
HOST = re.compile(r"[A-Za-z0-9.-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\]")  # a name, IPv4 or [IPv6]
NAMED_VARIABLE = re.compile(r"TG_[A-Z0-9_]{1,60}")


class Environment(StrEnum):
    """Where this process runs. Only `development` and `research` relax any gate."""

    production = "production"
    development = "development"
    research = "research"


def _text(raw: str) -> str:
    return raw


def _flag(raw: str) -> bool:
    words = {"true": True, "1": True, "false": False, "0": False}
    try:
        return words[raw.strip().lower()]
    except KeyError:
        raise ValueError("must be `true` or `false`") from None


def _positive(raw: str) -> int:
    if not raw.strip().isascii() or not raw.strip().isdigit() or int(raw) < 1:
        raise ValueError("must be a whole number of at least 1")
    return int(raw)


def _threads(raw: str) -> int:
    if (threads := _positive(raw)) > MAX_THREADS:
        raise ValueError(f"must be a whole number of 1 to {MAX_THREADS}")
    return threads


def _path(raw: str) -> Path:
    if "\0" in raw:
        raise ValueError("must be a path")
    return Path(raw).expanduser().absolute()


def _secret_text(raw: str) -> SecretStr:
    return SecretStr(raw)


def secret_bytes(raw: str) -> SecretBytes:
    """Decode 64 or more hex digits or base64 (either alphabet). Raises `ValueError`."""
    raw = raw.strip()
    try:
        return SecretBytes(bytes.fromhex(raw))
    except ValueError:
        pass
    try:
        text = raw.replace("-", "+").replace("_", "/")
        return SecretBytes(base64.b64decode(text + "=" * (-len(text) % 4), validate=True))
    except (binascii.Error, ValueError):
        raise ValueError("must be hex or base64") from None


def _environment(raw: str) -> Environment:
    try:
        return Environment(raw)
    except ValueError:
        known = ", ".join(Environment)
        raise ValueError(f"must be exactly one of: {known}") from None


def _origins(raw: str) -> tuple[str, ...]:
    origins = tuple(part.strip() for part in raw.split(",") if part.strip())
    for origin in origins:
        parts = urlsplit(origin)
        if origin != "*" and (
            parts.scheme not in {"http", "https"} or not parts.netloc or parts.path not in {"", "/"}
        ):
            raise ValueError("must be a comma-separated list of origins such as https://host:port")
    return origins


def _url(raw: str) -> str:
    parts = urlsplit(raw)
    if parts.scheme not in {"http", "https"} or not parts.netloc:
        raise ValueError("must be an http or https URL")
    return raw.rstrip("/")


def _host_port(raw: str) -> str:
    host, colon, port = raw.strip().rpartition(":")
    if not colon or not HOST.fullmatch(host) or not port.isascii() or not port.isdigit():
        raise ValueError("must be HOST:PORT")
    if not 0 < int(port) <= MAX_PORT:
        raise ValueError("must have a port of 1 to 65535")
    return raw.strip()


def _env(name: str, parse: Callable[[str], Any], meaning: str, default: Any = None) -> Any:
    """Declare a field that is read from the variable `name`."""
    metadata = {"variable": name, "parse": parse, "meaning": meaning}
    return field(default=default, metadata=metadata)


def _limit(name: str, default: int, meaning: str) -> Any:
    return _env(name, _positive, meaning, default)


KIB, MIB, GIB = 2**10, 2**20, 2**30


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Every setting of every process. Immutable; secrets do not print."""

    environment: Environment = _env(
        "TG_ENVIRONMENT",
        _environment,
        "production (also when unset), development or research",
        Environment.production,
    )
    secret_key: SecretBytes | None = _env(
        "TG_SECRET_KEY", secret_bytes, "root of cookie, CSRF, cursor and token-pepper keys"
    )
    key_master: SecretBytes | None = _env(
        "TG_KEY_MASTER", secret_bytes, "32 bytes: master key of the file key provider"
    )
    key_master_new: SecretBytes | None = _env(
        "TG_KEY_MASTER_NEW", secret_bytes, "the next master key, during `tensorguard keys rewrap`"
    )
    key_provider: str | None = _env(
        "TG_KEY_PROVIDER", _text, "file:DIR, pkcs11:…, awskms:REGION/… or vault:URL/…"
    )
    database_url: SecretStr | None = _env("DATABASE_URL", _secret_text, "SQLAlchemy URL")
    home: Path | None = _env("TG_HOME", _path, "data folder; 0700")
    public_url: str | None = _env("TG_PUBLIC_URL", _url, "the URL that callers use")
    allowed_origins: tuple[str, ...] = _env(
        "TG_ALLOWED_ORIGINS", _origins, "browser origins that may call, comma-separated", ()
    )
    tls_cert: Path | None = _env("TG_TLS_CERT", _path, "PEM certificate chain of this server")
    tls_key: Path | None = _env("TG_TLS_KEY", _path, "PEM private key of this server")
    behind_tls_proxy: bool = _env(
        "TG_BEHIND_TLS_PROXY", _flag, "a proxy in front of this process ends TLS", default=False
    )
    allow_tpm_simulator: bool = _env(
        "TG_ALLOW_TPM_SIMULATOR", _flag, "admit the TPM simulator (research only)", default=False
    )
    enable_aggregation: bool = _env(
        "TG_ENABLE_AGGREGATION", _flag, "turn federated rounds on", default=False
    )
    moai_backend: str = _env("TG_MOAI_BACKEND", _text, "tenseal or native", "tenseal")
    native_threads: int = _env(
        "TG_NATIVE_THREADS", _threads, "threads of the native backend per request: 1 to 64", 1
    )
    serving_pool: str = _env(
        "TG_SERVING_POOL", _text, "where the gateway's workers run: local or ray", "local"
    )
    ray_address: str | None = _env(
        "TG_RAY_ADDRESS", _host_port, "HOST:PORT of the Ray cluster's head node"
    )
    ray_private_network: bool = _env(
        "TG_RAY_PRIVATE_NETWORK",
        _flag,
        "nobody but the Ray nodes reaches the network between them",
        default=False,
    )
    ray_auth_mode: str | None = _env(
        "RAY_AUTH_MODE", _text, "Ray's own: `token` makes its nodes and drivers authenticate"
    )
    ray_use_tls: bool = _env(
        "RAY_USE_TLS", _flag, "Ray's own: TLS between its nodes and drivers", default=False
    )
    enable_otel: bool = _env("TG_ENABLE_OTEL", _flag, "export traces", default=False)
    otel_endpoint: str | None = _env("TG_OTEL_ENDPOINT", _url, "OTLP endpoint for traces")
    trust_store: Path | None = _env(
        "TG_TRUST_STORE", _path, "folder of public keys (*.pub.json) whose packs are accepted"
    )
    pack_dir: Path | None = _env("TG_PACK_DIR", _path, "folder from which the gateway loads packs")
    grant_jwks: str | None = _env(
        "TG_GRANT_JWKS", _text, "file or URL of the platform's JWKS, which signs serving grants"
    )
    audit_head_seconds: int = _env(
        "TG_AUDIT_HEAD_SECONDS", _positive, "how often the ends of audit trails are signed", 300
    )
    agent_dir: Path | None = _env(
        "TG_AGENT_DIR", _path, "folder of the agent: identity, spool, socket; 0700"
    )
    agent_url: str | None = _env("TG_AGENT_URL", _url, "the platform that the agent enrols at")
    agent_name: str | None = _env("TG_AGENT_NAME", _text, "name that the agent enrols under")
    agent_token_file: Path | None = _env(
        "TG_AGENT_TOKEN_FILE", _path, "file with the one-time enrolment token; 0600"
    )
    agent_socket: Path | None = _env(
        "TG_AGENT_SOCKET",
        _path,
        "Unix socket that takes JSON lines; default TG_AGENT_DIR/agent.sock",
    )
    agent_spool_bytes: int = _limit(
        "TG_AGENT_SPOOL_BYTES", 256 * MIB, "samples that the agent keeps until they are delivered"
    )
    agent_batch_rows: int = _limit(
        "TG_AGENT_BATCH_ROWS", 1000, "samples of one request, at most 1000"
    )
    agent_interval_seconds: int = _limit(
        "TG_AGENT_INTERVAL_SECONDS", 1, "how long the agent collects before it sends"
    )
    agent_system_seconds: int = _limit(
        "TG_AGENT_SYSTEM_SECONDS", 10, "how often the agent records the machine's own metrics"
    )
    notify_socket: str | None = _env(
        "NOTIFY_SOCKET", _text, "set by systemd: where the agent says that it is ready"
    )
    watchdog_usec: int | None = _env(
        "WATCHDOG_USEC", _positive, "set by systemd: microseconds between signs of life"
    )
    key_policy_seconds: int = _env(
        "TG_KEY_POLICY_SECONDS", _positive, "how often key rotation policies are looked at", 60
    )
    log_level: str = _env("TG_LOG_LEVEL", _text, "DEBUG, INFO, WARNING or ERROR", "INFO")

    max_body_bytes: int = _limit("TG_MAX_BODY_BYTES", MIB, "an ordinary request body")
    max_batch_bytes: int = _limit("TG_MAX_BATCH_BYTES", 16 * MIB, "a telemetry body, decompressed")
    max_batch_points: int = _limit("TG_MAX_BATCH_POINTS", 100_000, "points in one telemetry body")
    max_labels: int = _limit("TG_MAX_LABELS", 64, "labels of one series")
    max_json_depth: int = _limit("TG_MAX_JSON_DEPTH", 32, "nesting of a JSON body")
    max_pack_bytes: int = _limit("TG_MAX_PACK_BYTES", 256 * MIB, "a model pack")
    max_ciphertext_bytes: int = _limit("TG_MAX_CIPHERTEXT_BYTES", 32 * MIB, "one ciphertext frame")
    max_key_bytes: int = _limit("TG_MAX_KEY_BYTES", 512 * MIB, "one evaluation-key frame")
    max_key_store_bytes: int = _limit(
        "TG_MAX_KEY_STORE_BYTES", 4 * GIB, "all evaluation keys that a gateway keeps"
    )
    max_tenant_keys: int = _limit("TG_MAX_TENANT_KEYS", 64, "evaluation keys of one tenant")
    max_packs: int = _limit("TG_MAX_PACKS", 64, "packs that one gateway loads")
    max_worker_bytes: int = _limit(
        "TG_MAX_WORKER_BYTES", 4 * GIB, "address space of one FHE worker process"
    )
    max_worker_seconds: int = _limit(
        "TG_MAX_WORKER_SECONDS", 30, "time of one encrypted evaluation"
    )
    max_workers: int = _limit("TG_MAX_WORKERS", 1, "FHE worker processes")
    max_queue: int = _limit("TG_MAX_QUEUE", 16, "inference requests that wait for a worker")
    max_sample_age_days: int = _limit(
        "TG_MAX_SAMPLE_AGE_DAYS", 30, "days for which a late telemetry sample is still taken"
    )
    max_intake_bytes: int = _limit(
        "TG_MAX_INTAKE_BYTES", 48 * MIB, "telemetry bodies that wait to be stored, together"
    )
    max_intake_requests: int = _limit(
        "TG_MAX_INTAKE_REQUESTS", 1024, "telemetry requests that wait to be stored"
    )
    max_device_rate: int = _limit(
        "TG_MAX_DEVICE_RATE", 50_000, "samples a second of one device, ten seconds at once"
    )
    max_tenant_rate: int = _limit(
        "TG_MAX_TENANT_RATE", 500_000, "samples a second of one tenant, ten seconds at once"
    )
    telemetry_retention_days: int = _env(
        "TG_TELEMETRY_RETENTION_DAYS", _positive, "days for which samples are kept", 365
    )
    max_export_points: int = _limit(
        "TG_MAX_EXPORT_POINTS", 10_000_000, "samples of one CSV or Parquet export"
    )
    max_query_points: int = _limit("TG_MAX_QUERY_POINTS", 11_000, "points that one query returns")
    max_page: int = _limit("TG_MAX_PAGE", 1000, "items on one page of a list")

    malformed: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None) -> Settings:
        """Read every variable of the table. Faults are kept in `malformed`, never raised."""
        source = os.environ if environ is None else environ
        values: dict[str, Any] = {}
        malformed: dict[str, str] = {}
        for item in fields(cls):
            name = item.metadata.get("variable")
            if name is None or not (raw := source.get(name)):
                continue
            try:
                if len(raw) > MAX_VARIABLE:
                    raise ValueError(f"is longer than {MAX_VARIABLE} bytes")
                values[item.name] = item.metadata["parse"](raw)
            except (ValueError, OverflowError) as error:
                malformed[name] = str(error)
        return cls(**values, malformed=malformed)

    @staticmethod
    def named_secret(name: str, environ: Mapping[str, str] | None = None) -> SecretBytes:
        """Return the secret in the variable that an operator named. Raises `ConfigurationError`."""
        if not NAMED_VARIABLE.fullmatch(name):
            raise ConfigurationError(f"{name[:64]!r} cannot name a variable of ours: TG_…")
        raw = (os.environ if environ is None else environ).get(name)
        if not raw:
            raise ConfigurationError(f"{name} is not set")
        try:
            return secret_bytes(raw[:MAX_VARIABLE])
        except ValueError as error:
            raise ConfigurationError(f"{name} {error}") from error

    @property
    def production(self) -> bool:
        """True unless a relaxed environment was named, exactly, by its word."""
        return self.environment is Environment.production

    def need(self, name: str) -> Any:
        """Return a field that must be set by now. Raises `ConfigurationError`."""
        value = getattr(self, name)
        if value is None:
            variable = next(f.metadata["variable"] for f in fields(self) if f.name == name)
            raise ConfigurationError(f"{variable} is not set")
        return value


@dataclass(frozen=True, slots=True)
class Variable:
    """One row of the table, for `tensorguard doctor` and the documentation test."""

    name: str
    field: str
    meaning: str
    default: str


def variables() -> tuple[Variable, ...]:
    """Return every environment variable that this package reads, in table order."""
    return tuple(
        Variable(
            item.metadata["variable"],
            item.name,
            item.metadata["meaning"],
            "" if item.default is None else str(item.default),
        )
        for item in fields(Settings)
        if "variable" in item.metadata
    )


def default_home() -> Path:
    """Return the data folder of a development process whose `TG_HOME` is unset."""
    return Path("~/.tensorguard").expanduser()
