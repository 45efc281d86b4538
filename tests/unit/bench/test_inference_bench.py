import json

import numpy as np
import pytest

from tensorguard.bench import heads, inference
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
    assert document["missing"] == ["other: peer is not installed"]
    rows = {(row["variant"], row["metric"]): row for row in document["results"]}
    assert set(rows) == {
        (variant, metric)
        for variant in ("tenseal-naive", "tenseal")
        for metric in ("wall", "cpu", "error")
    }
    for row in rows.values():
        assert row["n"] == inference.QUICK_ROUNDS
        assert row["p10"] <= row["median"] <= row["p90"]
    assert rows["tenseal", "error"]["median"] < 1e-5
    assert rows["tenseal-naive", "error"]["median"] < 1e-3
    assert {row["metric"] for row in document["ratios"]} == {"wall", "cpu"}
    assert all(row["bar"] is None and row["holds"] is None for row in document["ratios"])
    assert not report.failed


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
