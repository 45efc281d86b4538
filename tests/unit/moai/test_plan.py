import numpy as np
import pytest

from tensorguard.moai import layout
from tensorguard.moai.parameters import make_parameters
from tensorguard.moai.plan import (
    LinearPlan,
    LinearShape,
    PolynomialShape,
    TooDeep,
    TooWide,
    choose_parameters,
    plan_network,
    polynomial_depth,
)
from tensorguard.moai.polynomial import schedule

SLOTS = 64


def evaluate(plan, weight, slots):
    """What the backend does, on plain slots; also returns the rotations it used."""
    used = set()
    columns = weight.shape[1]

    def rotate(values, step):
        used.add(step)
        return np.roll(values, -step)

    x = np.random.default_rng(0).normal(size=columns)
    padded = np.zeros(plan.period_in)
    padded[:columns] = x
    index = layout.input_index(
        slots=slots,
        period=plan.period_in,
        block_length=plan.block_length,
        blocks=plan.blocks,
        shift=plan.shift,
    )
    given = padded[index]
    total = np.zeros(slots)
    for giant, row in enumerate(layout.diagonals(plan, weight, slots=slots)):
        part = sum(
            (rotate(given, baby) if baby else given) * diagonal for baby, diagonal in enumerate(row)
        )
        total += rotate(part, giant * plan.baby) if giant else part
    for step in plan.folds:
        total = total + rotate(total, step)
    return total, weight @ x, used


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize(
    "shape",
    [(1, 1), (1, 7), (7, 1), (2, 2), (10, 64), (64, 2), (64, 64), (5, 33), (33, 5), (16, 8)],
)
def test_every_matrix_shape_is_multiplied_right(shape, first):
    inputs, outputs = shape
    shapes = [LinearShape("a", inputs, inputs)] * (not first) + [LinearShape("b", inputs, outputs)]
    plan = plan_network(shapes, slots=SLOTS).layers[-1]
    assert isinstance(plan, LinearPlan)
    weight = np.random.default_rng(1).normal(size=(outputs, inputs))
    result, expected, used = evaluate(plan, weight, SLOTS)
    np.testing.assert_allclose(result[:outputs], expected, atol=1e-9)
    np.testing.assert_allclose(result, np.tile(result[: plan.period_out], SLOTS // plan.period_out))
    assert used == plan.rotations


def test_the_policy_head_stays_in_the_smallest_ring():
    shapes = [
        LinearShape("hidden", 10, 64),
        PolynomialShape("cubic", 64, 3),
        LinearShape("out", 64, 2),
    ]
    parameters = choose_parameters(shapes)
    plan = plan_network(shapes, slots=parameters.slots)
    assert parameters.degree == 8192
    assert plan.depth == 4
    assert [layer.level for layer in plan.layers] == [5, 4, 2]
    assert plan.first.blocks == 16
    assert len(plan.rotations) <= 10


def test_a_network_that_is_too_deep_is_refused_with_the_layer_and_the_way_out():
    shapes = [LinearShape("l0", 8, 8)]
    for index in range(8):
        shapes += [PolynomialShape(f"act{index}", 8, 7), LinearShape(f"l{index + 1}", 8, 8)]
    with pytest.raises(TooDeep, match=r"act\d|l\d") as refused:
        choose_parameters(shapes)
    assert "degree 3" in str(refused.value)
    shapes = [LinearShape(f"l{index}", 8, 8) for index in range(60)]
    with pytest.raises(TooDeep, match="remove layers"):
        choose_parameters(shapes)


def test_a_network_that_is_too_wide_is_refused_with_the_layer():
    with pytest.raises(TooWide, match="huge"):
        choose_parameters([LinearShape("huge", 40_000, 2)])
    with pytest.raises(TooWide, match="wide"):
        plan_network([LinearShape("wide", 65, 2)], slots=64)
    assert choose_parameters([LinearShape("wide", 5000, 2)]).degree == 16384


def interpret(node, coefficients, powers, parameters):
    """Evaluate a schedule on a plain number, checking each scale on the way: value and scale."""
    raw = node.scale * parameters.primes[node.level]
    total = 0.0
    for term in node.terms:
        index = term.power.bit_length() - 1
        assert term.scale * powers[index][1] == pytest.approx(raw, rel=1e-12)
        total += coefficients[node.first + term.power] * powers[index][0]
    for quotient, power in node.products:
        value, scale = interpret(quotient, coefficients, powers, parameters)
        raised = powers[power.bit_length() - 1]
        assert scale * raised[1] == pytest.approx(raw, rel=1e-12)
        total += value * raised[0]
    if node.constant:
        total += coefficients[node.first]
    return total, node.scale


@pytest.mark.parametrize("degree", range(1, 16))
@pytest.mark.parametrize("odd", [False, True])
def test_polynomials_take_minimal_depth_and_add_only_equal_scales(degree, odd):
    parameters = make_parameters(16384, depth=6, scale_bits=35, headroom_bits=8)
    coefficients = np.random.default_rng(degree).normal(size=degree + 1)
    if odd:
        coefficients[:-1:2] = 0
    used = [bool(c) for c in coefficients]
    plan = schedule(used, parameters=parameters, level=7, scale=parameters.scale)
    z = 0.7
    powers = [(z ** (1 << i), scale) for i, scale in enumerate(plan.powers)]
    value, scale = interpret(plan.root, coefficients, powers, parameters)
    assert plan.root.level == 7 - polynomial_depth(degree)
    assert scale == parameters.scale
    assert value == pytest.approx(np.polynomial.polynomial.polyval(z, coefficients))
