"""The table: every reason to refuse, who it concerns, and how it is found."""

from __future__ import annotations

import importlib.util
import os
import ssl
import stat
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from pydantic import SecretBytes

from tensorguard.gates.entropy import SECRET_BYTES, weakness
from tensorguard.gates.gate import EVERYONE, SERVERS, WITH_KEYS, Gate, Probes, Role
from tensorguard.settings import Environment, Settings


def _secret(settings: Settings, variable: str, value: SecretBytes | None) -> str | None:
    if variable in settings.malformed:
        return f"{variable} {settings.malformed[variable]}."
    if value is None:
        return f"{variable} is not set."
    reason = weakness(value.get_secret_value())
    return f"{variable} {reason}." if reason else None


def _secret_key(settings: Settings, _: Probes) -> str | None:
    return _secret(settings, "TG_SECRET_KEY", settings.secret_key)


def _uses_file_provider(settings: Settings) -> bool:
    return (settings.key_provider or "").partition(":")[0] == "file"


def _key_master(settings: Settings, _: Probes) -> str | None:
    if not _uses_file_provider(settings):
        return None
    problem = _secret(settings, "TG_KEY_MASTER", settings.key_master)
    if problem or settings.key_master is None:
        return problem
    if len(settings.key_master.get_secret_value()) != SECRET_BYTES:
        return f"TG_KEY_MASTER must have exactly {SECRET_BYTES} bytes."
    return None


def _key_provider(settings: Settings, probes: Probes) -> str | None:
    if settings.key_provider is None:
        return "TG_KEY_PROVIDER is not set."
    if _key_master(settings, probes) is not None:
        return None  # said by its own gate; the provider cannot even be opened
    return probes.key_provider(settings) if probes.key_provider else None


# --- database, data folder, clock -----------------------------------------------------------


def _database_kind(settings: Settings, _: Probes) -> str | None:
    if settings.database_url is None:
        return "DATABASE_URL is not set."
    scheme = settings.database_url.get_secret_value().partition(":")[0]
    if scheme != "postgresql+psycopg":
        return f"DATABASE_URL names {scheme[:32] or 'nothing'}, not postgresql+psycopg."
    return None


def _database_revision(settings: Settings, probes: Probes) -> str | None:
    if settings.database_url is None or probes.database_revision is None:
        return None
    return probes.database_revision(settings)


def _home(settings: Settings, _: Probes) -> str | None:
    return _private_folder("TG_HOME", settings.home)


def _private_folder(variable: str, path: Path | None) -> str | None:
    if path is None:
        return f"{variable} is not set."
    try:
        status = path.lstat()
    except OSError as error:
        return f"{variable} {path} cannot be used: {error.strerror}."
    if not stat.S_ISDIR(status.st_mode):
        return f"{variable} {path} is not a folder."
    if status.st_mode & 0o077 or status.st_uid != os.geteuid():
        return f"{variable} {path} is open to others (mode {status.st_mode & 0o7777:04o})."
    return None


EARLIEST: Final = datetime(2026, 1, 1, tzinfo=UTC)  # before this release existed
LATEST: Final = datetime(2100, 1, 1, tzinfo=UTC)


def _clock(_: Settings, probes: Probes) -> str | None:
    now = probes.now()
    return None if EARLIEST <= now < LATEST else f"The clock says {now:%Y-%m-%d}."


# --- edge -----------------------------------------------------------------------------------


def _tls(settings: Settings, _: Probes) -> str | None:
    if "TG_BEHIND_TLS_PROXY" in settings.malformed:
        return f"TG_BEHIND_TLS_PROXY {settings.malformed['TG_BEHIND_TLS_PROXY']}."
    if settings.behind_tls_proxy:
        return None
    if settings.tls_cert is None or settings.tls_key is None:
        return "Neither TG_TLS_CERT with TG_TLS_KEY nor TG_BEHIND_TLS_PROXY is set."
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(settings.tls_cert, settings.tls_key)
    except (OSError, ValueError):
        return "TG_TLS_CERT and TG_TLS_KEY do not load as a matching PEM chain and key."
    return None


def _public_url(settings: Settings, _: Probes) -> str | None:
    if "TG_PUBLIC_URL" in settings.malformed:
        return f"TG_PUBLIC_URL {settings.malformed['TG_PUBLIC_URL']}."
    if settings.public_url is None:
        return "TG_PUBLIC_URL is not set."
    if urlsplit(settings.public_url).scheme != "https":
        return "TG_PUBLIC_URL is not an https URL."
    return None


def _origins(settings: Settings, _: Probes) -> str | None:
    if "TG_ALLOWED_ORIGINS" in settings.malformed:
        return f"TG_ALLOWED_ORIGINS {settings.malformed['TG_ALLOWED_ORIGINS']}."
    for origin in settings.allowed_origins:
        if origin == "*" or urlsplit(origin).scheme != "https":
            return f"TG_ALLOWED_ORIGINS admits {origin}."
    return None


# --- words, limits and components -----------------------------------------------------------


def _environment(settings: Settings, _: Probes) -> str | None:
    reason = settings.malformed.get("TG_ENVIRONMENT")
    return f"TG_ENVIRONMENT {reason}." if reason else None


OWN_GATE = frozenset(
    {
        "TG_ENVIRONMENT",
        "TG_SECRET_KEY",
        "TG_KEY_MASTER",
        "TG_PUBLIC_URL",
        "TG_ALLOWED_ORIGINS",
        "TG_BEHIND_TLS_PROXY",
        "TG_ALLOW_TPM_SIMULATOR",
        "TG_AGENT_URL",
    }
)


def _malformed(settings: Settings, _: Probes) -> str | None:
    elsewhere = OWN_GATE if settings.production else {"TG_ENVIRONMENT"}
    faults = [
        f"{name} {reason}" for name, reason in settings.malformed.items() if name not in elsewhere
    ]
    return "; ".join(faults) + "." if faults else None


def _simulator(settings: Settings, _: Probes) -> str | None:
    if "TG_ALLOW_TPM_SIMULATOR" in settings.malformed:
        return f"TG_ALLOW_TPM_SIMULATOR {settings.malformed['TG_ALLOW_TPM_SIMULATOR']}."
    admitted = settings.allow_tpm_simulator and settings.environment is not Environment.research
    return "TG_ALLOW_TPM_SIMULATOR admits simulated TPMs." if admitted else None


def _unsafe(settings: Settings, probes: Probes) -> str | None:
    names = (settings.moai_backend, settings.key_provider or "", *probes.components)
    found = [name for name in names if name.startswith("unsafe")]
    return f"Unsafe components are configured: {', '.join(found)}." if found else None


RAY_TOKEN: Final = "token"  # noqa: S105 - a mode of Ray's, no password
BACKEND_MODULES: Final[Mapping[str, str]] = {
    "tenseal": "tenseal",
    "native": "tensorguard_moai_native",
}


def _backend(settings: Settings, _: Probes) -> str | None:
    if settings.moai_backend.startswith("unsafe"):
        return None  # said by UNSAFE_COMPONENT
    module = BACKEND_MODULES.get(settings.moai_backend)
    if module is None:
        return f"TG_MOAI_BACKEND names {settings.moai_backend[:32]!r}, which does not exist."
    if importlib.util.find_spec(module) is None:
        return f"TG_MOAI_BACKEND is {settings.moai_backend}, but {module} is not installed."
    return None


def _aggregation(settings: Settings, _: Probes) -> str | None:
    if settings.enable_aggregation and importlib.util.find_spec("flwr") is None:
        return "TG_ENABLE_AGGREGATION is on, but flwr is not installed."
    return None


def _otel(settings: Settings, _: Probes) -> str | None:
    if settings.enable_otel and settings.otel_endpoint is None:
        return "TG_ENABLE_OTEL is on, but TG_OTEL_ENDPOINT is not set."
    if settings.enable_otel and importlib.util.find_spec("opentelemetry.sdk") is None:
        return "TG_ENABLE_OTEL is on, but opentelemetry-sdk is not installed."
    return None


# --- serving --------------------------------------------------------------------------------


def _trust_store(settings: Settings, probes: Probes) -> str | None:
    if settings.trust_store is None:
        return "TG_TRUST_STORE is not set."
    return probes.trust_store(settings) if probes.trust_store else None


def _pack_dir(settings: Settings, _: Probes) -> str | None:
    if settings.pack_dir is None:
        return "TG_PACK_DIR is not set."
    return None if settings.pack_dir.is_dir() else f"TG_PACK_DIR {settings.pack_dir} is no folder."


def _grants(settings: Settings, _: Probes) -> str | None:
    if settings.grant_jwks is None:
        return "TG_GRANT_JWKS is not set."
    scheme = urlsplit(settings.grant_jwks).scheme
    if scheme == "http":
        return "TG_GRANT_JWKS is fetched without TLS."
    if scheme != "https" and not Path(settings.grant_jwks).is_file():
        return f"TG_GRANT_JWKS {settings.grant_jwks} is neither an https URL nor a file."
    return None


POOLS: Final = ("local", "ray")


def _serving_pool(settings: Settings, probes: Probes) -> str | None:
    if settings.serving_pool not in POOLS:
        return f"TG_SERVING_POOL names {settings.serving_pool[:32]!r}, which does not exist."
    if settings.serving_pool != "ray" or "TG_RAY_ADDRESS" in settings.malformed:
        return None
    if settings.ray_address is None:
        return "TG_SERVING_POOL is ray, but TG_RAY_ADDRESS is not set."
    if settings.production and _ray_network(settings, probes) is not None:
        return None  # said by its own gate; nothing is sent into such a network
    return probes.ray(settings) if probes.ray else None


def _ray_network(settings: Settings, _: Probes) -> str | None:
    if settings.serving_pool != "ray" or settings.ray_address is None:
        return None
    if settings.ray_private_network or (
        settings.ray_auth_mode == RAY_TOKEN and settings.ray_use_tls
    ):
        return None
    return "The Ray cluster admits whoever reaches its ports."


# --- agent ----------------------------------------------------------------------------------


def _agent_dir(settings: Settings, _: Probes) -> str | None:
    return _private_folder("TG_AGENT_DIR", settings.agent_dir)


def _agent_url(settings: Settings, _: Probes) -> str | None:
    if "TG_AGENT_URL" in settings.malformed:
        return f"TG_AGENT_URL {settings.malformed['TG_AGENT_URL']}."
    if settings.agent_url is not None and urlsplit(settings.agent_url).scheme != "https":
        return "TG_AGENT_URL is not an https URL."
    return None


RANDOM = "python3 -c 'import secrets; print(secrets.token_hex(32))'"

GATES: Final = (
    Gate(
        "ENVIRONMENT",
        EVERYONE,
        "any environment word but production, development and research",
        "Set TG_ENVIRONMENT to production, development or research; unset means production.",
        _environment,
        always=True,
    ),
    Gate(
        "SETTINGS",
        EVERYONE,
        "a variable that cannot be read",
        "Correct the variable; `tensorguard doctor` shows what each one means.",
        _malformed,
        always=True,
    ),
    Gate(
        "SECRET_KEY",
        WITH_KEYS,
        "a missing, short, malformed, low-entropy or well-known root secret",
        f"Set TG_SECRET_KEY to 32 random bytes: {RANDOM}",
        _secret_key,
    ),
    Gate(
        "KEY_MASTER",
        WITH_KEYS,
        "a missing, malformed or low-entropy master key of the file key provider",
        f"Set TG_KEY_MASTER to 32 random bytes: {RANDOM}",
        _key_master,
    ),
    Gate(
        "KEY_PROVIDER",
        WITH_KEYS,
        "a key provider that is not named, not supported, not reachable or fails its self-test",
        "Set TG_KEY_PROVIDER to a supported provider and make it reachable.",
        _key_provider,
    ),
    Gate(
        "DATABASE_KIND",
        WITH_KEYS,
        "a database other than PostgreSQL",
        "Set DATABASE_URL to postgresql+psycopg://USER:PASSWORD@HOST/NAME.",
        _database_kind,
    ),
    Gate(
        "DATABASE_REVISION",
        frozenset({Role.platform}),
        "a database that is out of reach or not at the newest migration",
        "Start the database, then run `tensorguard db upgrade`.",
        _database_revision,
        always=True,
    ),
    Gate(
        "HOME",
        WITH_KEYS | SERVERS,
        "a data folder that is missing or open to others",
        "Set TG_HOME to a folder of this user with mode 0700.",
        _home,
    ),
    Gate(
        "TLS",
        SERVERS,
        "plain HTTP",
        "Set TG_TLS_CERT and TG_TLS_KEY, or TG_BEHIND_TLS_PROXY=true behind a proxy that ends TLS.",
        _tls,
    ),
    Gate(
        "PUBLIC_URL",
        frozenset({Role.platform}),
        "an unknown or unencrypted public address",
        "Set TG_PUBLIC_URL to the https URL that callers use.",
        _public_url,
    ),
    Gate(
        "ALLOWED_ORIGINS",
        frozenset({Role.platform, Role.serving}),
        "browser origins that are wild-carded or unencrypted",
        "List exact https origins in TG_ALLOWED_ORIGINS, or none.",
        _origins,
    ),
    Gate(
        "TPM_SIMULATOR",
        EVERYONE - {Role.client},
        "simulated TPMs outside research",
        "Unset TG_ALLOW_TPM_SIMULATOR.",
        _simulator,
    ),
    Gate(
        "UNSAFE_COMPONENT",
        EVERYONE - {Role.client},
        "a component whose name starts with `unsafe`",
        "Choose the real component.",
        _unsafe,
    ),
    Gate(
        "MOAI_BACKEND",
        frozenset({Role.platform, Role.serving}),
        "an FHE backend that does not exist or is not installed",
        "Set TG_MOAI_BACKEND to tenseal, or install tensorguard-moai-native for native.",
        _backend,
        always=True,
    ),
    Gate(
        "AGGREGATION",
        frozenset({Role.platform, Role.aggregator}),
        "federated rounds without their dependency",
        "Install tensorguard[fl], or unset TG_ENABLE_AGGREGATION.",
        _aggregation,
        always=True,
    ),
    Gate(
        "TRACING",
        SERVERS,
        "tracing without an endpoint or its dependency",
        "Set TG_OTEL_ENDPOINT and install opentelemetry-sdk, or unset TG_ENABLE_OTEL.",
        _otel,
        always=True,
    ),
    Gate(
        "TRUST_STORE",
        frozenset({Role.serving}),
        "a missing, empty or unreadable trust store for packs",
        "Set TG_TRUST_STORE to a folder of *.pub.json files from `tensorguard keys export-public`.",
        _trust_store,
        always=True,
    ),
    Gate(
        "PACK_DIR",
        frozenset({Role.serving}),
        "a missing pack folder",
        "Set TG_PACK_DIR to the folder that holds the *.moai packs.",
        _pack_dir,
        always=True,
    ),
    Gate(
        "GRANTS",
        frozenset({Role.serving}),
        "serving without the platform's token-signing keys",
        "Set TG_GRANT_JWKS to the platform's https://…/.well-known/jwks.json or a copy of it.",
        _grants,
    ),
    Gate(
        "SERVING_POOL",
        frozenset({Role.serving}),
        "a worker pool that does not exist, is not installed or is out of reach",
        "Set TG_SERVING_POOL to local; or to ray, install tensorguard[ray], set TG_RAY_ADDRESS to the "
        "head node and start Ray on this machine as one of its nodes.",
        _serving_pool,
        always=True,
    ),
    Gate(
        "RAY_NETWORK",
        frozenset({Role.serving}),
        "a Ray cluster that anybody in the network can run code on",
        "Set RAY_AUTH_MODE=token and RAY_USE_TLS=1 on every node and here, or "
        "TG_RAY_PRIVATE_NETWORK=true where only the nodes reach each other.",
        _ray_network,
    ),
    Gate(
        "AGENT_DIR",
        frozenset({Role.agent}),
        "an agent's folder that is missing or open to others",
        "Set TG_AGENT_DIR to a folder of this user with mode 0700.",
        _agent_dir,
    ),
    Gate(
        "AGENT_URL",
        frozenset({Role.agent}),
        "a robot that talks to its platform without TLS",
        "Set TG_AGENT_URL to the platform's https URL.",
        _agent_url,
    ),
    Gate(
        "CLOCK",
        EVERYONE,
        "a clock that cannot be right",
        "Set the system clock (NTP).",
        _clock,
    ),
)
