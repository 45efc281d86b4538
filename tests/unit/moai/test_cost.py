"""Operations are counted as docs/native-runtime.md derives them; the cheaper packing is taken."""

from dataclasses import replace

import numpy as np
import pytest

from tensorguard.errors import MalformedInput
from tensorguard.moai import cost
from tensorguard.moai.compile import compile_for_batches
from tensorguard.moai.compile.network import Activation, Dense, Network
from tensorguard.moai.plan import LinearShape, PolynomialShape, choose_parameters, plan_network


def counted(*shapes, layout="blocks"):
    parameters = choose_parameters(shapes, layout=layout)
    plan = plan_network(shapes, slots=parameters.slots, layout=layout)
    return cost.count(plan, shapes, parameters), plan, parameters


def test_a_layer_in_blocks_costs_its_decompositions_divisions_and_folds():
    found, plan, _ = counted(LinearShape("a", 64, 64), LinearShape("b", 64, 64))
    first, second = plan.layers
    assert (first.level, second.level) == (3, 2)
    transforms = 0
    for step in plan.layers:
        level = step.level
        if step.baby * step.giant == 1:
            transforms += 2 * level
        else:  # (l + l^2) g + (1 + l)(g - 1) + 2 (l + 1), as in the document
            transforms += (level + level**2) * step.giant + (1 + level) * (step.giant + 1)
        below = level - 1
        transforms += len(step.folds) * ((below + below**2) + (1 + below))
    assert found.transforms + found.wide_transforms == transforms


def test_a_layer_in_columns_is_one_product_of_matrices():
    found, plan, _ = counted(LinearShape("a", 30, 20), layout="columns")
    level = plan.layers[0].level
    assert found == cost.Counts(transforms=2 * level * 20, columns=2 * level * 30 * 20)


@pytest.mark.parametrize(
    ("degree", "below"),  # of each relinearisation: levels under the input's
    [(1, []), (2, [0]), (3, [0, 1]), (7, [0, 1, 1, 2]), (15, [0, 1, 2, 1, 2, 2, 3])],
)
def test_an_activation_relinearises_once_for_each_square_and_each_sum(degree, below):
    shapes = (LinearShape("a", 4, 4), PolynomialShape("p", 4, degree), LinearShape("b", 4, 4))
    _, plan, parameters = counted(*shapes)
    level = plan.layers[1].level
    found = cost.count(
        replace(plan, layers=plan.layers[1:2], sources=((-1,),)), shapes[1:2], parameters
    )
    assert found.wide_transforms == sum(level - step + 2 for step in below)


def test_wide_primes_and_slower_kernels_cost_more():
    _, plan, parameters = counted(LinearShape("a", 64, 64))
    shapes = (LinearShape("a", 64, 64),)
    prices = [
        cost.milliseconds(plan, shapes, parameters, kernels=name)
        for name in ("ifma", "avx2", "scalar")
    ]
    assert prices == sorted(prices)
    assert prices[0] > 0


def network(width=16):
    rng = np.random.default_rng(5)
    layers = (
        Dense("dense0", rng.normal(size=(width, width)) / 4, np.zeros(width), Activation("tanh")),
        Dense("dense1", rng.normal(size=(4, width)) / 4, np.zeros(4), None),
    )
    ends = (np.zeros(width), np.ones(width), np.ones(4), np.zeros(4))
    return Network(layers, *ends), rng.uniform(-1, 1, (64, width))


@pytest.mark.parametrize(("batch", "layout"), [(1, "blocks"), (4096, "columns")])
def test_the_cheaper_packing_is_taken_and_recorded(batch, layout):
    model, data = network()
    compiled = compile_for_batches(model, data, batch=batch)
    assert compiled.plan.layout == layout
    options = compiled.provenance.options
    assert options["batch-size"] == str(batch)
    blocks, columns = (float(options[f"milliseconds-in-{name}"]) for name in ("blocks", "columns"))
    assert (blocks < columns) == (layout == "blocks")


def test_a_batch_that_is_none_is_refused():
    model, data = network()
    for batch in (0, -1, 1 << 21):
        with pytest.raises(MalformedInput, match="a batch has 1 to"):
            compile_for_batches(model, data, batch=batch)
