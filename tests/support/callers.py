"""Callers of the shared gateway: a tenant with keys, and what a good refusal looks like."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import httpx
import numpy as np

from support.serving import Shared, network, sample
from tensorguard.moai.client import ClientKeys
from tensorguard.wire.frames import Kind, build_frame
from tensorguard.wire.models import ModelView

OCTETS = {"Content-Type": "application/octet-stream"}
KEYS = "TG-Evaluation-Keys"


@dataclass
class Caller:
    """A client of one tenant with uploaded keys for the linear model."""

    shared: Shared
    http: httpx.Client
    view: ModelView
    keys: ClientKeys
    frame: bytes
    digest: str

    def upload(self, data: bytes) -> httpx.Response:
        digest = hashlib.sha256(data).hexdigest()
        return self.http.put(f"/v1/evaluation-keys/{digest}", content=data, headers=OCTETS)

    def infer(
        self, data: bytes, *, digest: str | None = None, model: str = "linear"
    ) -> httpx.Response:
        headers = OCTETS | {KEYS: digest or self.digest}
        return self.http.post(f"/v1/models/{model}/infer", content=data, headers=headers)

    def works(self) -> None:
        """Check that a good request gets the right answer, and that no worker has ended."""
        x = sample(7)
        answer = self.infer(self.keys.encrypt(x))
        assert answer.status_code == 200, answer.text
        expected = network(1).raw(x[None])[0]
        assert np.abs(self.keys.decrypt(answer.content) - expected).max() < 1e-3
        assert self.shared.gateway.deaths() == 0


def framed(
    caller: Caller, kind: Kind, items: Sequence[bytes], parameters_id: bytes | None = None
) -> bytes:
    identity = parameters_id or caller.keys.parameters.id
    return build_frame(kind, identity, items, key_id=caller.keys.key_id)


def make_caller(shared: Shared, tenant: str) -> Caller:
    http = shared.gateway.client(shared.grant(tenant=tenant))
    view = ModelView.from_json(http.get("/v1/models/linear").content)
    keys = ClientKeys.generate(view)
    frame = keys.evaluation_keys()
    caller = Caller(shared, http, view, keys, frame, hashlib.sha256(frame).hexdigest())
    assert caller.upload(frame).status_code == 201
    return caller


def refused(response: httpx.Response, status: int, code: str | None = None) -> None:
    """Check that a response is a problem document of ours, with something to do about it."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert problem["status"] == status
    assert problem["remedy"]
    assert problem["request_id"] == response.headers["x-request-id"]
    assert code is None or problem["code"] == code, problem
