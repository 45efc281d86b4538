"""Classes and predicted errors are held to bars that can be missed."""

from dataclasses import replace

import numpy as np
import pytest

from tensorguard.bench import agreement, heads
from tensorguard.bench.agreement import Effort
from tensorguard.bench.ours import Signed, backends, copies
from tensorguard.bench.report import Result
from tensorguard.moai.backends.base import open_backend
from tensorguard.moai.client import ClientKeys

SMALL = Effort(images=40, keys=2, inputs=3)


@pytest.fixture(scope="module")
def digits():
    head = heads.digits(seed=5)
    return head, Signed.of(head)


@pytest.mark.invariant("TG-I85")
def test_every_backend_finds_the_class_that_the_plaintext_network_finds(digits):
    head, signed = digits
    models, _ = signed.models(backends()[0])
    results = agreement.classes("digits", head, signed, models, SMALL)
    assert {row.variant for row in results} == {"plaintext", *models}
    assert {(row.metric, row.unit, row.n) for row in results} == {("argmax", "%", 40)}
    ratios = agreement.bars(results)
    assert {ratio.variant for ratio in ratios} == set(models)
    assert all(ratio.holds and ratio.bar == 0.995 for ratio in ratios)


@pytest.mark.invariant("TG-I86")
@pytest.mark.parametrize(
    "make",
    [
        lambda: heads.reacher_policy(seed=5),
        lambda: heads.matvec(16, seed=5),
        lambda: heads.adapter(48, 4, seed=5),
        lambda: heads.chebyshev(7),
    ],
    ids=["policy", "matrix", "adapter", "chebyshev"],
)
def test_a_pack_predicts_the_error_that_each_backend_makes(make):
    head = make()
    signed = Signed.of(head)
    models, _ = signed.models(backends()[0])
    results = agreement.prediction("case", head, signed, models, SMALL)
    ratios = agreement.bars(results)
    assert len(ratios) == 2 * len(models)
    assert all(ratio.holds for ratio in ratios), ratios


@pytest.mark.invariant("TG-I86")
def test_a_pack_in_columns_predicts_its_error():
    head = heads.digits(seed=5)
    head = replace(head, inputs=head.inputs[:50], batch=50)
    signed = Signed.of(head)
    models, missing = signed.models(backends()[0])
    assert any(line.startswith("tenseal: ") for line in missing)
    results = agreement.prediction("case", head, signed, models, SMALL)
    results += agreement.classes("case", head, signed, models, SMALL)
    assert all(ratio.holds for ratio in agreement.bars(results))


@pytest.mark.parametrize(("measured", "kept"), [(1.9, [True, True]), (2.1, [False, True])])
def test_a_prediction_is_missed_when_too_low_and_when_too_high(measured, kept):
    def ratios(predicted, found):
        return agreement.bars(
            [
                Result.root_mean_square("c", "native", "error-rms", "rms", [found**2]),
                Result.single("c", "predicted", "error-rms", "rms", predicted, n=9),
            ]
        )

    assert [ratio.holds for ratio in ratios(1.0, measured)] == kept
    assert [ratio.holds for ratio in ratios(measured, 1.0)] == kept[::-1]


def test_a_class_too_many_misses_its_bar():
    def held(share):
        rows = [
            Result.single("c", name, "argmax", "%", value, n=450)
            for name, value in (("plaintext", 100.0), ("native", share))
        ]
        return [ratio.holds for ratio in agreement.bars(rows)]

    assert held(100 * 448 / 450) == [True]
    assert held(100 * 447 / 450) == [False]


def test_the_copies_of_an_output_agree_with_it(digits):
    head, signed = digits
    x = head.inputs[0]
    client = ClientKeys.generate(signed.pack.spec.view())
    model = open_backend("tenseal").load(signed.pack)
    result = model.evaluate(model.load_keys(client.evaluation_keys()), client.encrypt(x))
    found = copies(client, signed.pack.spec.plan.layers[-1], result)
    assert len(found) > 1
    np.testing.assert_allclose(
        found, np.tile(signed.pack.spec.graph.slots(x[None]), (len(found), 1)), atol=1e-3
    )


def test_a_root_mean_square_is_no_median():
    row = Result.root_mean_square("c", "v", "m", "rms", [0.0, 0.0, 9.0])
    assert row.median == pytest.approx(3**0.5)
    assert row.n == 3
