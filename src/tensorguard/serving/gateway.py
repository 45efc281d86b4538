"""What the gateway does, without HTTP: it admits by grant, checks sizes and ids, and passes bytes on.

It never parses more of a ciphertext than our own header: what is behind it is read in a worker.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass

from tensorguard.errors import Conflict, TensorGuardError, VerificationError
from tensorguard.serving.catalogue import Catalogue, Served
from tensorguard.serving.keystore import DigestMismatch, KeyStore, StoredKeys
from tensorguard.serving.metrics import ServingMetrics
from tensorguard.serving.pool import Answer, Job, Pool, QueueFull
from tensorguard.settings import Settings
from tensorguard.wire.frames import Kind, ParametersMismatch, frame_digest, parse_frame
from tensorguard.wire.grants import Grant

log = logging.getLogger(__name__)

MAX_UPLOADS = 2  # bodies of evaluation keys in memory at one time; each may be very large


class PackChanged(Conflict):
    code = "pack_changed"
    remedy = "Fetch the model's view again, make keys for it if its parameters differ, and encrypt."


class NoModelForKeys(VerificationError):
    code = "no_model_for_keys"
    remedy = "Make evaluation keys from the view of a model that your grant names."


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which model a caller asks for."""

    name: str
    version: str | None = None
    pack_id: str | None = None


class Gateway:
    """The gateway's verbs. Every one takes the caller's grant."""

    def __init__(
        self,
        settings: Settings,
        pool: Pool,
        catalogue: Catalogue,
        keys: KeyStore,
        metrics: ServingMetrics,
    ) -> None:
        self._settings = settings
        self._pool = pool
        self._catalogue = catalogue
        self._keys = keys
        self._metrics = metrics
        self._requests = 0
        self._uploads = 0

    def models(self, grant: Grant) -> tuple[Served, ...]:
        """Return the models of a grant."""
        return self._catalogue.models(grant.packs)

    def model(self, grant: Grant, wanted: Wanted) -> Served:
        """Return one model of a grant. Raises `ModelUnknown` or `PackChanged`."""
        served = self._catalogue.model(wanted.name, wanted.version, grant.packs)
        if wanted.pack_id is not None and wanted.pack_id != served.pack_id:
            raise PackChanged(f"{served.view.name} is now another pack than the one asked for")
        return served

    @contextlib.asynccontextmanager
    async def inference(self) -> AsyncIterator[None]:
        """Hold one of the places that bound the bodies in memory. Raises `QueueFull`."""
        if self._requests >= self._settings.max_queue + self._settings.max_workers:
            raise QueueFull("too many requests are in flight", retry_after=1)
        self._requests += 1
        try:
            yield
        finally:
            self._requests -= 1

    @contextlib.asynccontextmanager
    async def upload(self) -> AsyncIterator[None]:
        """Hold one of the places for large bodies. Raises `QueueFull`."""
        if self._uploads >= MAX_UPLOADS:
            raise QueueFull("other evaluation keys are being uploaded", retry_after=1)
        self._uploads += 1
        try:
            yield
        finally:
            self._uploads -= 1

    async def put_keys(self, grant: Grant, digest: str, data: bytes) -> bool:
        """Check and keep evaluation keys. Returns whether they are new; nothing partial is kept."""
        # (1) the bytes are those that were named
        if await asyncio.to_thread(frame_digest, data) != digest:
            raise DigestMismatch("the body does not have the digest in the path")
        # (2) our header says: evaluation keys, within the limit, nothing secret
        frame = await asyncio.to_thread(
            parse_frame,
            data,
            kind=Kind.evaluation_keys,
            parameters_id=None,
            limit=self._settings.max_key_bytes,
        )
        # (3) a model of the grant has these parameters
        candidates = self._catalogue.shapes(frame.parameters_id, grant.packs)
        if not candidates:
            raise NoModelForKeys("no model of this grant has the parameters of these keys")
        # (4) a worker reads them strictly, for one of those models
        await self._check_for_any(tuple(candidates.values()), grant.tenant, digest, data)
        # (5) only then are they stored, for this tenant
        new = await asyncio.to_thread(self._keys.put, grant.tenant, digest, data)
        self._metrics.key_bytes.set(await asyncio.to_thread(self._keys.sweep))
        log.info("evaluation keys", extra={"sha256": digest, "size": len(data), "new": new})
        return new

    async def _check_for_any(
        self, models: tuple[Served, ...], tenant: str, digest: str, data: bytes
    ) -> None:
        for served in models[:-1]:
            try:
                await self._pool.check_keys(served.pack_id, tenant, digest, data)
            except TensorGuardError as error:
                if error.status >= 500 or error.code == "secret_key_in_upload":  # noqa: PLR2004
                    raise
            else:
                return
        await self._pool.check_keys(models[-1].pack_id, tenant, digest, data)

    async def find_keys(self, grant: Grant, digest: str) -> StoredKeys:
        """Return what is known of the tenant's keys. Raises `KeysUnknown`."""
        return await asyncio.to_thread(self._keys.find, grant.tenant, digest)

    async def delete_keys(self, grant: Grant, digest: str) -> None:
        """Forget the tenant's keys. Raises `KeysUnknown`."""
        await asyncio.to_thread(self._keys.delete, grant.tenant, digest)

    async def ready_for(self, grant: Grant, wanted: Wanted, digest: str) -> Served:
        """Return the model, once the keys that are named exist for it; nothing large was read."""
        served = self.model(grant, wanted)
        keys = await self.find_keys(grant, digest)
        if keys.parameters_id != served.shape.parameters_id:
            raise ParametersMismatch("the evaluation keys are for other parameters than the model")
        return served

    async def infer(
        self,
        grant: Grant,
        served: Served,
        digest: str,
        ciphertext: bytes,
        *,
        deadline: float | None = None,
    ) -> Answer:
        """Evaluate one ciphertext with the tenant's keys, if that can be done before `deadline`."""
        model = served.view.name
        self._metrics.bytes.labels(model, "in").inc(len(ciphertext))
        try:
            answer = await self._infer(grant, served, digest, ciphertext, deadline)
        except TensorGuardError as error:
            self._metrics.evaluations.labels(model, error.code).inc()
            raise
        self._metrics.evaluations.labels(model, "ok").inc()
        self._metrics.evaluate_seconds.labels(model).observe(answer.evaluate_seconds)
        self._metrics.queue_seconds.labels(model).observe(answer.queue_seconds)
        self._metrics.bytes.labels(model, "out").inc(len(answer.ciphertext))
        return answer

    async def _infer(
        self,
        grant: Grant,
        served: Served,
        digest: str,
        ciphertext: bytes,
        deadline: float | None,
    ) -> Answer:
        parse_frame(
            ciphertext,
            kind=Kind.ciphertext,
            parameters_id=served.shape.parameters_id,
            limit=self._settings.max_ciphertext_bytes,
            columns=served.view.features if served.view.packing.layout == "columns" else None,
        )

        async def fetch() -> bytes:
            return await asyncio.to_thread(self._keys.read, grant.tenant, digest)

        return await self._pool.evaluate(
            Job(served.pack_id, grant.tenant, digest, ciphertext, fetch, deadline)
        )
