"""A batch goes through a live gateway in one request."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from support.moai import installed_backends
from support.serving import FEATURES, Site, gateway, network
from tensorguard.moai.client import NotForBatches
from tensorguard.sdk import InferenceClient


@pytest.mark.parametrize("backend", [x for x in installed_backends() if x == "native"])
def test_a_batch_is_answered_in_one_request(tmp_path: Path, backend: str) -> None:
    site = Site(tmp_path / "site")
    packs = (
        site.add("batch", network(2, squared=True), layout="columns"),
        site.add("one", network(1)),
    )
    rows = np.random.default_rng(1).uniform(-1, 1, (1000, FEATURES))
    with (
        gateway(site, TG_MOAI_BACKEND=backend) as running,
        InferenceClient(running.url, lambda: site.issuer.grant(*packs)) as client,
    ):
        model, single = client.open("batch"), client.open("one")
        found = model.predict_batch(rows)
        assert found.shape == (1000, 2)
        assert np.abs(found - network(2, squared=True).raw(rows)).max() < 1e-3
        assert np.abs(model.predict(rows[0]) - found[0]).max() < 1e-3
        with pytest.raises(NotForBatches):
            single.predict_batch(rows)
        assert running.deaths() == 0
