"""Encrypted inference for customers: the secret key is made here and never leaves this process.

    with InferenceClient(url, token, keys_path=Path("arm.keys"), key_provider=custody) as client:
        model = client.open("reacher-policy")
        action = model.predict(observation)

What comes back is decrypted here. Do not show decrypted values to the gateway's operator: together
with their ciphertexts they can tell something of the key (Li and Micciancio 2021). Nothing here sends
them anywhere; for results that others may see there is `EncryptedModel.share_results`.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, Self
from urllib.parse import quote

import httpx
import msgspec
import numpy as np
import numpy.typing as npt

from tensorguard.errors import Conflict, MalformedInput, VerificationError
from tensorguard.keys.provider import KeyProvider
from tensorguard.moai.pack import VerifiedPack
from tensorguard.sdk import sharing
from tensorguard.sdk.key_folder import KeyFolder
from tensorguard.sdk.keystore import keystore
from tensorguard.sdk.transport import Answer, TokenProvider, Transport
from tensorguard.wire.frames import MEDIA_TYPE, frame_digest
from tensorguard.wire.models import ModelView
from tensorguard.wire.problems import RemoteProblem
from tensorguard.wire.serving import (
    DEADLINE_HEADER,
    KEYS_HEADER,
    PACK_HEADER,
    TIMING_HEADER,
    ModelList,
    ModelSummary,
    read_server_timing,
)

Floats = npt.NDArray[np.float64]
OutOfRange = Literal["refuse", "clip"]

TIMEOUT = 60.0  # seconds without a byte
KEYS_UNKNOWN = "evaluation_keys_unknown"
PACK_CHANGED = frozenset({"pack_changed", "model_unknown"})
NOT_FOUND = 404


class PackNotPinned(VerificationError):
    code = "pack_not_pinned"
    remedy = "Ask the model's publisher for its present pack id; use the model only if it agrees."


class ModelChanged(Conflict):
    code = "model_changed"
    remedy = "Open the model again; what was encrypted for the old pack means nothing to the new."


@dataclass(frozen=True, slots=True)
class Timing:
    """Where the time of one prediction went, in milliseconds, and the bytes of both frames.

    `queue_ms` and `evaluate_ms` are what the gateway says; None if it does not say.
    """

    encrypt_ms: float
    decrypt_ms: float
    request_ms: float
    queue_ms: float | None
    evaluate_ms: float | None
    bytes_up: int
    bytes_down: int

    @property
    def client_ms(self) -> float:
        """Return the time of encryption and decryption."""
        return self.encrypt_ms + self.decrypt_ms

    @property
    def server_ms(self) -> float | None:
        """Return the gateway's time: waiting and evaluating."""
        if self.queue_ms is None or self.evaluate_ms is None:
            return None
        return self.queue_ms + self.evaluate_ms

    @property
    def network_ms(self) -> float | None:
        """Return what is left of the request: HTTP, and the bytes' way there and back."""
        return None if self.server_ms is None else max(self.request_ms - self.server_ms, 0.0)

    @property
    def total_ms(self) -> float:
        """Return the time of the whole prediction."""
        return self.client_ms + self.request_ms


class InferenceClient:
    """A gateway, as one caller sees it. `token_provider` returns a grant that is valid now.

    `keys_path` is the keystore, sealed by `key_provider`; without it, keys live in memory. With
    `deadline`, in seconds, the gateway refuses what it could not answer in that time. `verify` holds a
    private CA; `http` replaces the way that requests go, such as through a proxy.
    """

    def __init__(
        self,
        base_url: str,
        token_provider: TokenProvider,
        *,
        keys_path: Path | None = None,
        key_provider: KeyProvider | None = None,
        unsafe_plain_keys: bool = False,
        deadline: float | None = None,
        timeout: float = TIMEOUT,
        verify: ssl.SSLContext | None = None,
        http: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._keys_path = keys_path
        self._keystore = None
        if keys_path is not None:
            self._keystore = keystore(keys_path, key_provider, unsafe_plain_keys=unsafe_plain_keys)
        self._deadline = deadline
        self._transport = Transport(
            base_url, token_provider, timeout=timeout, verify=verify, http=http, sleep=sleep
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._transport.close()

    def models(self) -> tuple[ModelSummary, ...]:
        """Return the models that the grant names."""
        answer = self._transport.request("GET", "/v1/models")
        try:
            return msgspec.json.decode(answer.body, type=ModelList).models
        except (msgspec.DecodeError, ValueError) as error:
            raise MalformedInput("the gateway's list of models cannot be read") from error

    def model(self, name: str, *, version: str | None = None) -> ModelView:
        """Return what a client needs to know of a model; by default of its newest version."""
        query = "" if version is None else f"?version={quote(version, safe='')}"
        answer = self._transport.request("GET", f"/v1/models/{quote(name, safe='')}{query}")
        return ModelView.from_json(answer.body)

    def open(
        self, name: str, *, version: str | None = None, pack_id: str | None = None
    ) -> EncryptedModel:
        """Return a model that is ready to predict: keys made or loaded, evaluation keys there.

        With `pack_id`, any other pack is refused (`PackNotPinned`). With the client's `keys_path`,
        the secret key is read from that keystore, or made and kept there.
        """
        view = self.model(name, version=version)
        if pack_id is not None and view.pack_id != pack_id:
            raise PackNotPinned(f"the gateway serves {name} as pack {view.pack_id[:16]}…")
        keys = KeyFolder(view, self._keystore, self._keys_path)
        model = EncryptedModel(self._transport, keys, deadline=self._deadline)
        model.upload_keys()
        return model


class EncryptedModel:
    """One model, evaluated on ciphertexts. `last_timing` tells of the last prediction."""

    def __init__(
        self, transport: Transport, keys: KeyFolder, *, deadline: float | None = None
    ) -> None:
        self._deadline = deadline
        self.view = keys.view
        self.last_timing: Timing | None = None
        self.evaluation_key_bytes = 0  # of the frame that the gateway holds
        self._transport = transport
        self._keys = keys
        self._shares = False  # whether a budget of shared results was given out
        self._digest = ""

    @property
    def labels(self) -> tuple[str, ...]:
        """Return the classes, in the order of the outputs; empty for a regression."""
        return self.view.output.labels

    def upload_keys(self) -> bool:
        """Give the gateway the evaluation keys unless it has them. Returns whether it had not."""
        frame = self._keys.evaluation_keys()
        self._digest = frame_digest(frame)
        self.evaluation_key_bytes = len(frame)
        path = f"/v1/evaluation-keys/{self._digest}"
        try:
            self._transport.request("GET", path)
        except RemoteProblem as error:
            if error.status != NOT_FOUND:
                raise
        else:
            return False
        self._transport.request("PUT", path, content=frame, headers={"Content-Type": MEDIA_TYPE})
        return True

    def predict(self, x: npt.ArrayLike, *, out_of_range: OutOfRange = "refuse") -> Floats:
        """Return the outputs (outputs,) for one input (features,), in the model's own units.

        Values outside the calibrated range raise `InputOutOfRange`, or are clipped. Raises
        `ModelChanged` when the gateway now serves another pack under this name.
        """
        keys = self._keys.keys
        return self._predict(lambda: keys.encrypt(x, out_of_range=out_of_range), keys.decrypt)

    def predict_batch(self, x: npt.ArrayLike, *, out_of_range: OutOfRange = "refuse") -> Floats:
        """Return the outputs (n, outputs) for rows of inputs (n, features): one request.

        The model's pack is one that is built for batches (`NotForBatches`), n at most its slots.
        """
        keys, rows = self._keys.keys, np.asarray(x, dtype=np.float64)
        return self._predict(
            lambda: keys.encrypt_batch(rows, out_of_range=out_of_range),
            lambda frame: keys.decrypt_batch(frame, samples=len(rows)),
        )

    def share_results(
        self,
        pack: VerifiedPack,
        *,
        results: int,
        security_bits: int = sharing.SECURITY_BITS,
        least_bits: float = sharing.LEAST_BITS,
        random: sharing.Gaussian | None = None,
    ) -> sharing.SharedResults:
        """Return what predicts under these keys with results that others may see, so many at most.

        The error to hide is the one that `pack` predicts: the publisher's word, not the gateway's. Raises
        `PrecisionTooLow` when too little of a result would be left, `KeysOutliveTheirCount` for keys of
        a keystore, and `ResultsSpent` when these keys share results already.
        """
        if not self._keys.in_memory:
            raise sharing.KeysOutliveTheirCount("the keys of a keystore outlive this process")
        if self._shares:
            raise sharing.ResultsSpent("these keys have a budget of shared results already")
        keys = self._keys.keys
        shared = sharing.SharedResults(
            self.view,
            pack,
            lambda x, flood: self._predict(
                lambda: keys.encrypt(x), lambda frame: keys.decrypt(frame, flood=flood)
            ),
            results=results,
            security_bits=security_bits,
            least_bits=least_bits,
            random=random,
        )
        self._shares = True
        return shared

    def _predict(self, encrypt: Callable[[], bytes], decrypt: Callable[[bytes], Floats]) -> Floats:
        began = time.perf_counter()
        frame = encrypt()
        encrypted = time.perf_counter()
        answer = self._evaluate(frame)
        received = time.perf_counter()
        values = decrypt(answer.body)
        done = time.perf_counter()
        said = read_server_timing(answer.headers.get(TIMING_HEADER, ""))
        self.last_timing = Timing(
            encrypt_ms=(encrypted - began) * 1000,
            decrypt_ms=(done - received) * 1000,
            request_ms=answer.seconds * 1000,
            queue_ms=None if said is None else said.queue_ms,
            evaluate_ms=None if said is None else said.evaluate_ms,
            bytes_up=len(frame),
            bytes_down=len(answer.body),
        )
        return values

    def _evaluate(self, frame: bytes) -> Answer:
        try:
            return self._send(frame)
        except RemoteProblem as error:
            if error.code != KEYS_UNKNOWN:
                raise
        self.upload_keys()  # the gateway made room, or was set up anew
        return self._send(frame)

    def _send(self, frame: bytes) -> Answer:
        view = self.view
        try:
            answer = self._transport.request(
                "POST",
                f"/v1/models/{quote(view.name, safe='')}/infer?version={quote(view.version, safe='')}",
                content=frame,
                headers=self._headers(),
            )
        except RemoteProblem as error:
            if error.code in PACK_CHANGED:
                raise ModelChanged(f"{view.name} {view.version}: {error}") from error
            raise
        if answer.headers.get(PACK_HEADER) != view.pack_id:
            raise ModelChanged("the gateway evaluated another pack")
        return answer

    def _headers(self) -> dict[str, str]:
        headers = {
            "Content-Type": MEDIA_TYPE,
            KEYS_HEADER: self._digest,
            PACK_HEADER: self.view.pack_id,
        }
        if self._deadline is not None:
            headers[DEADLINE_HEADER] = str(max(1, round(self._deadline * 1000)))
        return headers
