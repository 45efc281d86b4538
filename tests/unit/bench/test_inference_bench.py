import json
from dataclasses import replace

import numpy as np
import pytest

from tensorguard.bench import agreement, heads, inference
from tensorguard.bench.naive import NaivePolynomial
from tensorguard.bench.report import Result, commit, machine, ratios


def absent(seed):
    raise ModuleNotFoundError("No module named 'peer'", name="peer")


def test_the_report_has_the_agreed_form_and_names_what_is_missing():
    cases = {"matvec-8": lambda seed: heads.matvec(8, seed=seed), "other": absent}
    report = inference.run(quick=True, progress=lambda _: None, cases=cases)
    document = json.loads(json.dumps(report.to_dict()))
    assert set(document) == {
        "bench", "commit", "machine", "versions", "seed", "results", "ratios", "missing",
    }  # fmt: skip
    assert document["bench"] == "inference"
    backends, cannot = inference.backends()
    assert set(cannot) < set(document["missing"])
    assert document["missing"][-1] == "other: peer is not installed"
    rows = {(row["variant"], row["metric"]): row for row in document["results"]}
    timed = {
        (variant, metric)
        for variant in ("tenseal-naive", *backends)
        for metric in ("wall", "cpu", "error")
    }
    assert set(rows) == timed | {(name, "error-rms") for name in ("predicted", *backends)}
    for key in timed:
        assert rows[key]["n"] == (1 if key[0] == "tenseal-naive" else inference.QUICK_ROUNDS)
        assert rows[key]["p10"] <= rows[key]["median"] <= rows[key]["p90"]
    assert all(rows[name, "error"]["median"] < 1e-5 for name in backends)
    assert rows["tenseal-naive", "error"]["median"] < 1e-3
    assert {row["metric"] for row in document["ratios"]} == {"wall", "cpu", "error", "error-rms"}
    promised = [row for row in document["ratios"] if row["metric"] == "error-rms"]
    assert {row["variant"] for row in promised} == {"predicted", *backends}  # both ways
    assert all(row["bar"] == agreement.PREDICTION_BAR and row["holds"] for row in promised)
    others = [row for row in document["ratios"] if row["metric"] != "error-rms"]
    assert all(row["bar"] is None and row["holds"] is None for row in others)
    assert not report.failed


def test_every_kind_of_kernels_is_measured_or_named_as_missing():
    backends, missing = inference.backends()
    named = {line.partition(":")[0] for line in missing}
    kinds = {f"native-{name}" for name in inference.KERNELS}
    assert set(backends) | named == {"tenseal", *kinds}
    assert not set(backends) & named


def test_every_bar_is_of_a_case_and_a_variant_that_exist():
    names = {"tenseal", *(f"native-{name}" for name in inference.KERNELS)}
    for bars in (inference.BARS, inference.ORION_BARS):
        assert {case for case, _, _ in bars} <= set(inference.CASES)
        assert {variant for _, variant, _ in bars} <= names
    assert set(inference.CASES) >= inference.LONG


def test_a_long_case_is_left_out_of_a_quick_run_and_named():
    long = next(iter(inference.LONG))
    report = inference.run(quick=True, progress=lambda _: None, cases={long: absent})
    assert f"{long}: it takes too long for --quick" in report.missing
    assert not report.results


def test_batches_are_measured_on_native_and_missing_on_tenseal():
    def batch(seed):
        head = heads.reacher_policy(seed=seed)
        return replace(head, inputs=head.inputs[:20], batch=20)

    report = inference.run(quick=True, progress=lambda _: None, cases={"batch": batch})
    assert any(line.startswith("batch tenseal: ") for line in report.missing)
    errors = {row.variant: row.median for row in report.results if row.metric == "error"}
    natives = {name for name in inference.backends()[0] if name.startswith("native")}
    assert set(errors) == {"tenseal-naive", *natives}
    assert any(line.startswith("batch orion: ") for line in report.missing) or any(
        line.startswith("orion: ") for line in report.missing
    )
    assert errors.pop("tenseal-naive") < 1e-2
    assert all(error < 1e-4 for error in errors.values())


def test_the_rounds_that_were_asked_for_are_measured():
    cases = {"matvec-8": lambda seed: heads.matvec(8, seed=seed)}
    report = inference.run(quick=False, rounds=3, progress=lambda _: None, cases=cases)
    assert {row.n for row in report.results if row.metric == "cpu"} == {3}


def test_cases_are_chosen_by_name_and_unknown_ones_refused():
    assert list(inference.choose(["chebyshev-27", "matvec-256"])) == ["chebyshev-27", "matvec-256"]
    assert inference.choose([]) is inference.CASES
    with pytest.raises(inference.CaseUnknown):
        inference.choose(["matvec-257"])


def test_the_naive_polynomial_is_the_same_polynomial():
    head = heads.chebyshev(5)
    naive = NaivePolynomial(head.network)
    x = head.inputs[40]
    truth = head.network.raw(x[None])[0]
    assert np.abs(naive.decrypt(naive.evaluate(naive.encrypt(x))) - truth).max() < 1e-4


def test_the_naive_program_carries_biases_past_a_layer_without_activation():
    head = heads.adapter(24, 2, seed=1)
    layers = head.network.layers
    biased = replace(layers[0], bias=np.ones(2)), replace(layers[1], bias=np.arange(24.0))
    network = replace(head.network, steps=biased)
    naive = inference.NaiveTenSeal(network)
    found = naive.decrypt(naive.evaluate(naive.encrypt(head.inputs[0])))
    assert np.abs(found - network.raw(head.inputs[:1])[0]).max() < 1e-3


def test_a_missed_bar_fails_and_a_kept_one_holds():
    rows = [Result.of("c", name, "wall", "ms", [value]) for name, value in (("a", 10), ("b", 2))]
    (kept,) = ratios(rows, against="a", metrics=["wall"], bars={("c", "b", "wall"): 4})
    assert (kept.value, kept.holds) == (5, True)
    (missed,) = ratios(rows, against="a", metrics=["wall"], bars={("c", "b", "wall"): 6})
    assert missed.holds is False


def test_the_machine_is_described_without_its_name():
    assert set(machine()) == {"cpu", "cores", "system", "architecture"}
    assert commit() == "unknown" or len(commit()) == 40


def test_the_naive_program_computes_the_same_network():
    head = heads.reacher_policy(seed=1)
    naive = inference.NaiveTenSeal(head.network)
    x = head.inputs[0]
    network = head.network
    truth = network.raw(x[None])[0] * network.output_scale + network.output_offset
    assert np.abs(naive.decrypt(naive.evaluate(naive.encrypt(x))) - truth).max() < 1e-2


def test_the_policy_head_learns_the_controller():
    head = heads.reacher_policy(seed=1)
    observations, actions = heads.reacher_states(500, np.random.default_rng(9))
    network = head.network
    predicted = network.raw(observations) * network.output_scale + network.output_offset
    unexplained = ((predicted - actions) ** 2).mean() / actions.var()
    assert unexplained < 0.1
    assert np.abs(actions).max() <= 1


@pytest.mark.parametrize("seed", [0, 1])
def test_heads_follow_from_their_seed(seed):
    first, second = heads.matvec(4, seed=seed), heads.matvec(4, seed=seed)
    np.testing.assert_array_equal(first.network.layers[0].weight, second.network.layers[0].weight)
