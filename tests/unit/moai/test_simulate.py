import numpy as np
import pytest

from support import moai
from tensorguard.moai.compile import compile_network
from tensorguard.moai.compile.network import Dense
from tensorguard.moai.parameters import make_parameters
from tensorguard.moai.plan import plan_network
from tensorguard.moai.simulate import simulate


def test_each_scale_bit_halves_the_predicted_error():
    model = moai.reacher()
    graph = model.compiled.graph
    plan = plan_network(graph.shapes, slots=4096)
    found = []
    for bits in (28, 30, 32):
        parameters = make_parameters(8192, depth=4, scale_bits=bits, headroom_bits=8)
        found.append(np.sqrt(simulate(graph, plan, parameters, model.inputs[:200]).outputs.mean()))
    assert found[0] / found[1] == pytest.approx(4, rel=0.3)
    assert found[1] / found[2] == pytest.approx(4, rel=0.3)


@pytest.mark.parametrize("shape", [(8, 8), (3, 100), (100, 3)])
def test_predicted_and_measured_error_of_a_matrix_agree_within_two(shape):
    inputs, outputs = shape
    rng = np.random.default_rng(0)
    layer = Dense("a", rng.normal(size=(outputs, inputs)), rng.normal(size=outputs), None)
    data = rng.uniform(-1, 1, (64, inputs))
    model = moai.ready(compile_network(moai.network(layer, features=inputs), data), data)
    errors = [model.infer(x) - model.compiled.graph.apply(x[None])[0] for x in data[:24]]
    measured = np.sqrt(np.mean(np.square(errors)))
    predicted = model.compiled.precision.ckks_absolute_rms
    assert predicted / 2 < measured < predicted * 2
