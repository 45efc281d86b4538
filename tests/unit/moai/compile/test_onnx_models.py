import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from support import moai, mutations
from tensorguard.errors import InputError, MalformedInput
from tensorguard.moai.compile import read_model
from tensorguard.moai.compile.from_onnx import from_onnx, network_of
from tensorguard.moai.compile.network import ModelNotSupported, merged

RNG = np.random.default_rng(5)


def tensor(*shape, scale=0.5):
    return (RNG.normal(size=shape) * scale).astype(np.float32)


def model(nodes, constants, shape, *, batch="batch", opset=20, outputs=("y",), functions=()):
    """Chains `nodes` (op, inputs, output, attributes); the input is x, the output y."""
    made = [helper.make_node(op, given, [out], name=f"n{k}", **options)
            for k, (op, given, out, options) in enumerate(nodes)]  # fmt: skip
    graph = helper.make_graph(
        made,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, *shape])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", opset)], functions=list(functions)
    )


def expected(proto, rows, shape):
    run = ReferenceEvaluator(proto)
    return np.concatenate(
        [np.asarray(run.run(None, {"x": row.reshape(1, *shape)})[0]).reshape(1, -1) for row in rows]
    )


def agrees(proto, shape, *, rows=24):
    x = RNG.normal(size=(rows, int(np.prod(shape)))).astype(np.float32)
    network = network_of(proto.SerializeToString())
    np.testing.assert_allclose(
        network.raw(x.astype(float)), expected(proto, x, shape), rtol=2e-4, atol=2e-5
    )
    return network


def test_gemm_and_matmul_with_add():
    nodes = [
        ("Gemm", ["x", "w0", "b0"], "a", {"transB": 1, "alpha": 0.5, "beta": 2.0}),
        ("Relu", ["a"], "b", {}),
        ("MatMul", ["b", "w1"], "c", {}),
        ("Add", ["b1", "c"], "y", {}),
    ]
    constants = {"w0": tensor(6, 4), "b0": tensor(6), "w1": tensor(6, 3), "b1": tensor(1, 3)}
    network = agrees(model(nodes, constants, (4,)), (4,))
    assert [layer.activation and layer.activation.function for layer in merged(network.layers)] == [
        "relu",
        None,
    ]


@pytest.mark.parametrize(
    ("shape", "kernel", "options"),
    [
        ((3, 9), (4, 3, 3), {}),
        ((4, 9), (6, 2, 3), {"group": 2, "strides": [2], "pads": [1, 2], "dilations": [2]}),
        ((2, 6, 5), (3, 2, 3, 2), {"pads": [1, 0, 2, 1]}),
        ((4, 6, 5), (4, 1, 3, 3), {"group": 4, "strides": [1, 2], "auto_pad": "VALID"}),
        ((2, 7, 7), (2, 2, 2, 2), {"dilations": [2, 3], "strides": [2, 1]}),
    ],
    ids=["1d", "1d-all", "pads", "depthwise", "dilated"],
)
def test_convolutions_are_their_matrix(shape, kernel, options):
    nodes = [("Conv", ["x", "w", "b"], "c", options), ("Flatten", ["c"], "y", {})]
    agrees(model(nodes, {"w": tensor(*kernel), "b": tensor(kernel[0])}, shape), shape)


@pytest.mark.parametrize(
    ("op", "options"),
    [
        ("AveragePool", {"kernel_shape": [2, 2], "strides": [2, 2]}),
        ("AveragePool", {"kernel_shape": [3, 2], "pads": [1, 0, 1, 1]}),
        ("AveragePool", {"kernel_shape": [3, 2], "pads": [1, 0, 1, 1], "count_include_pad": 1}),
        ("GlobalAveragePool", {}),
    ],
    ids=["plain", "padded", "counted", "global"],
)
def test_a_convolutional_network_with_pools_and_batch_norm_is_two_layers(op, options):
    shape = (2, 6, 6)
    nodes = [
        ("Conv", ["x", "w"], "c", {"pads": [1, 1, 1, 1]}),
        ("BatchNormalization", ["c", "g", "h", "m", "v"], "n", {"epsilon": 1e-3}),
        ("Tanh", ["n"], "t", {}),
        ("Dropout", ["t"], "d", {}),
        (op, ["d"], "p", options),
        ("Transpose", ["p"], "q", {"perm": [0, 2, 3, 1]}),
        ("Reshape", ["q", "s"], "f", {}),
        ("Identity", ["f"], "y", {}),
    ]
    constants = {
        "w": tensor(3, 2, 3, 3), "g": tensor(3), "h": tensor(3), "m": tensor(3),
        "v": np.abs(tensor(3)) + 0.1, "s": np.array([0, -1]),
    }  # fmt: skip
    network = agrees(model(nodes, constants, shape), shape)
    assert len(merged(network.layers)) == 2


ROOT2 = np.float32(np.sqrt(2))
SPELLINGS = {
    "relu": [("Relu", ["h"], "a", {})],
    "tanh": [("Tanh", ["h"], "a", {})],
    "logistic": [("Sigmoid", ["h"], "a", {})],
    "gelu": [("Gelu", ["h"], "a", {})],
    "gelu_tanh": [("Gelu", ["h"], "a", {"approximate": "tanh"})],
    "gelu ": [
        ("Div", ["h", "root2"], "h1", {}),
        ("Erf", ["h1"], "h2", {}),
        ("Add", ["h2", "one"], "h3", {}),
        ("Mul", ["h", "h3"], "h4", {}),
        ("Mul", ["h4", "half"], "a", {}),
    ],
    "gelu  ": [
        ("Mul", ["h", "half"], "h0", {}),
        ("Div", ["h", "root2"], "h1", {}),
        ("Erf", ["h1"], "h2", {}),
        ("Add", ["one", "h2"], "h3", {}),
        ("Mul", ["h3", "h0"], "a", {}),
    ],
    "silu": [("Sigmoid", ["h"], "h1", {}), ("Mul", ["h", "h1"], "a", {})],
    "tanh ": [
        ("Mul", ["h", "half"], "h1", {}),
        ("Tanh", ["h1"], "h2", {}),
        ("Mul", ["h2", "half"], "h3", {}),
        ("Add", ["h3", "half"], "a", {}),
    ],
    "polynomial": [
        ("Pow", ["h", "three"], "h1", {}),
        ("Mul", ["h1", "half"], "h2", {}),
        ("Sub", ["h", "h2"], "a", {}),
    ],
    "polynomial ": [("Mul", ["h", "h"], "a", {})],
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_activations_are_recognised_in_every_spelling(name):
    nodes = [
        ("Gemm", ["x", "w0"], "h", {}),
        *SPELLINGS[name],
        ("MatMul", ["a", "w1"], "y", {}),
    ]
    constants = {
        "w0": tensor(4, 8), "w1": tensor(8, 2), "root2": ROOT2, "one": np.float32(1),
        "half": np.float32(0.5), "three": np.float32(3),
    }  # fmt: skip
    network = agrees(model(nodes, constants, (4,)), (4,))
    functions = [layer.activation.function for layer in network.layers if layer.activation]
    assert functions in ([name.strip()], ["logistic"])


def test_lora_adapters_are_merged_into_the_weight():
    nodes = [
        ("MatMul", ["x", "w"], "base", {}),
        ("MatMul", ["x", "down"], "low", {}),
        ("MatMul", ["low", "up"], "high", {}),
        ("Mul", ["high", "alpha"], "scaled", {}),
        ("Add", ["base", "scaled"], "h", {}),
        ("Relu", ["h"], "r", {}),
        ("Transpose", ["w2"], "w2t", {}),
        ("Gemm", ["r", "w2t"], "y", {}),
    ]
    constants = {
        "w": tensor(16, 16), "down": tensor(16, 2), "up": tensor(2, 16),
        "alpha": np.float32(0.25), "w2": tensor(3, 16),
    }  # fmt: skip
    network = agrees(model(nodes, constants, (16,)), (16,))
    assert [layer.weight.shape for layer in merged(network.layers)] == [(16, 16), (3, 16)]


def test_an_adapter_alone_stays_two_cheap_layers():
    nodes = [("MatMul", ["x", "down"], "low", {}), ("MatMul", ["low", "up"], "y", {})]
    constants = {"down": tensor(64, 4), "up": tensor(4, 64)}
    network = agrees(model(nodes, constants, (64,)), (64,))
    assert [layer.weight.shape for layer in merged(network.layers)] == [(4, 64), (64, 4)]


@pytest.mark.parametrize(("op", "width"), [("Softmax", 3), ("Sigmoid", 1)])
def test_the_last_activation_is_the_clients(op, width):
    nodes = [("Gemm", ["x", "w"], "h", {}), (op, ["h"], "y", {})]
    proto = model(nodes, {"w": tensor(4, width)}, (4,))
    x = RNG.normal(size=(40, 4)).astype(np.float32)
    compiled = from_onnx(proto.SerializeToString(), x, labels=["a", "b", "c"][: max(width, 2)])
    got = compiled.graph.apply(x.astype(float))[:, -width:]
    np.testing.assert_allclose(got, expected(proto, x, (4,)), atol=1e-5)
    assert compiled.provenance.source == "onnx"
    with pytest.raises(ModelNotSupported, match="labels"):
        network_of(proto.SerializeToString(), labels=["only"])


def test_labels_make_a_classification_of_logits():
    proto = model([("Gemm", ["x", "w"], "y", {})], {"w": tensor(4, 3)}, (4,))
    network = network_of(proto.SerializeToString(), labels=["a", "b", "c"])
    assert (network.output_activation, network.labels) == ("softmax", ("a", "b", "c"))


def test_an_activation_at_the_end_is_kept():
    proto = model([("Gemm", ["x", "w"], "h", {}), ("Tanh", ["h"], "y", {})], {"w": tensor(4, 3)}, (4,))  # fmt: skip
    assert agrees(proto, (4,)).output_activation == "identity"


def kinds(network):
    return [getattr(layer, "kind", "dense") for layer in merged(network.steps)]


JOINED = {
    "residual": [
        ("Gemm", ["x", "w"], "h", {}), ("Relu", ["h"], "r", {}), ("Gemm", ["r", "w1"], "g", {}),
        ("Add", ["h", "g"], "s", {}), ("Relu", ["s"], "t", {}), ("Gemm", ["t", "w2"], "y", {}),
    ],
    "residual of the input": [
        ("Gemm", ["x", "w"], "h", {}), ("Relu", ["h"], "r", {}), ("Sub", ["x", "r"], "y", {}),
    ],
    "side by side": [
        ("Relu", ["x"], "a", {}), ("Tanh", ["x"], "b", {}), ("Gemm", ["a", "w"], "c", {}),
        ("Gemm", ["b", "w1"], "d", {}), ("Add", ["c", "d"], "y", {}),
    ],
    "gate": [
        ("Gemm", ["x", "w"], "h", {}), ("Sigmoid", ["h"], "a", {}), ("Gemm", ["x", "w1"], "g", {}),
        ("Mul", ["g", "a"], "m", {}), ("Gemm", ["m", "w2"], "y", {}),
    ],
    "layer norm": [
        ("Gemm", ["x", "w"], "h", {}),
        ("LayerNormalization", ["h", "gamma", "beta"], "n", {"epsilon": 1e-3}),
        ("Gemm", ["n", "w2"], "y", {}),
    ],
    "layer norm, spelt out": [
        ("Gemm", ["x", "w"], "h", {}), ("ReduceMean", ["h"], "mu", {"axes": [-1]}),
        ("Sub", ["h", "mu"], "c", {}), ("Pow", ["c", "two"], "q", {}),
        ("ReduceMean", ["q"], "v", {"axes": [-1]}), ("Add", ["v", "eps"], "e", {}),
        ("Sqrt", ["e"], "r", {}), ("Div", ["c", "r"], "d", {}), ("Mul", ["d", "gamma"], "m", {}),
        ("Add", ["m", "beta"], "n", {}), ("Gemm", ["n", "w2"], "y", {}),
    ],
    "unused": [
        ("Relu", ["x"], "a", {}), ("Tanh", ["x"], "b", {}), ("Gemm", ["b", "w"], "y", {}),
    ],
}  # fmt: skip
JOINS = {
    "residual": ["dense", "dense", "dense", "add", "dense", "dense"],
    "residual of the input": ["dense", "dense", "dense", "add", "dense"],
    "side by side": ["dense"] * 5 + ["add", "dense"],
    "gate": ["dense", "dense", "dense", "product", "dense"],
    "layer norm": ["dense", "dense", "dense", "product", "dense"],
    "layer norm, spelt out": ["dense", "dense", "dense", "product", "dense"],
    "unused": ["dense", "dense"],
}


@pytest.mark.parametrize("name", JOINED)
def test_sums_and_products_behind_activations_are_layers(name):
    constants = {
        "w": tensor(4, 4), "w1": tensor(4, 4), "w2": tensor(4, 2), "gamma": tensor(4) + 1,
        "beta": tensor(4), "two": np.float32(2), "eps": np.float32(1e-3),
    }  # fmt: skip
    network = agrees(model(JOINED[name], constants, (4,), opset=17), (4,))
    assert kinds(network) == JOINS[name]


W = {"w": tensor(4, 4), "w1": tensor(4, 4), "w3": tensor(4, 3), "v": tensor(4)}
REFUSED = {
    "both depend on the input": [
        ("Gemm", ["x", "w"], "h", {}), ("MatMul", ["h", "x"], "y", {}),
    ],
    "average pooling": [("MaxPool", ["x"], "y", {"kernel_shape": [2]})],
    "use LayerNormalization": [("InstanceNormalization", ["x", "w", "w"], "y", {})],
    "epsilon is not positive": [("LayerNormalization", ["x", "v"], "y", {"epsilon": 0.0})],
    "over the batch": [("LayerNormalization", ["x", "v"], "y", {"axis": 0})],
    "scale depends on the input": [("LayerNormalization", ["x", "x"], "y", {})],
    "raises to a value": [("Relu", ["x"], "h", {}), ("Pow", ["x", "h"], "y", {})],
    "values of two shapes": [
        ("Relu", ["x"], "h", {}), ("Gemm", ["h", "w3"], "g", {}), ("Add", ["x", "g"], "y", {}),
    ],
    "use Relu": [("LeakyRelu", ["x"], "y", {})],
    "elementwise function": [("Erf", ["x"], "h", {}), ("Gemm", ["h", "w"], "y", {})],
    "follows a softmax": [("Softmax", ["x"], "h", {}), ("Gemm", ["h", "w"], "y", {})],
    "does not depend on the input": [("Identity", ["w"], "y", {})],
    "not defined before it": [("Relu", ["nothing"], "y", {})],
    "ONNX's own": [("Gemm", ["x", "w"], "y", {"domain": "com.microsoft"})],
    "mixes the batch": [("Flatten", ["x"], "y", {"axis": 0})],
    "fixed sizes": [("Shape", ["x"], "y", {})],
}  # fmt: skip


@pytest.mark.parametrize("why", REFUSED, ids=range(len(REFUSED)))
def test_what_is_no_chain_is_refused_with_the_node_and_the_reason(why):
    with pytest.raises(ModelNotSupported, match=why) as refused:
        network_of(model(REFUSED[why], W, (4,)).SerializeToString())
    assert "node 'n" in str(refused.value)


def changed(change):
    proto = model([("Gemm", ["x", "w"], "y", {})], W, (4,))
    change(proto)
    return proto.SerializeToString()


def external(proto):
    proto.graph.initializer[0].ClearField("raw_data")
    proto.graph.initializer[0].data_location = TensorProto.EXTERNAL
    proto.graph.initializer[0].external_data.add(key="location", value="../../etc/passwd")


def control_flow(proto):
    branch = helper.make_graph([], "b", [], [])
    proto.graph.node.add(op_type="If", input=["x"], output=["z"]).attribute.append(
        helper.make_attribute("then_branch", branch)
    )


CHANGES = {
    "another file": external,
    "function": lambda p: p.functions.add(name="f", domain="d"),
    "graph": control_flow,
    "sparse": lambda p: p.graph.sparse_initializer.add(),
    "1 to .* nodes": lambda p: p.graph.ClearField("node"),
    "fixed sizes": lambda p: p.graph.input[0].type.tensor_type.shape.dim[1].Clear(),
    "batch": lambda p: setattr(p.graph.input[0].type.tensor_type.shape.dim[0], "dim_value", 3),
    "operator set": lambda p: setattr(p.opset_import[0], "version", 99),
    "outputs": lambda p: p.graph.output.add(name="z"),
    "inputs": lambda p: p.graph.input.add(name="z"),
    "size of its shape": lambda p: setattr(p.graph.initializer[0], "raw_data", b"1234"),
    "too large": lambda p: p.graph.initializer[0].dims.append(1 << 40),
    "no usable shape": lambda p: p.graph.initializer[0].dims.append(-1),
    "not finite": lambda p: p.graph.initializer[0].CopyFrom(
        numpy_helper.from_array(np.full((4, 4), np.nan, np.float32), "w")
    ),
    "same name": lambda p: p.graph.initializer.append(p.graph.initializer[0]),
    "defined twice": lambda p: p.graph.node.append(p.graph.node[0]),
    "no node gives": lambda p: setattr(p.graph.output[0], "name", "q"),
}


@pytest.mark.parametrize("why", CHANGES)
def test_a_file_that_is_not_one_static_graph_is_refused(why):
    with pytest.raises(MalformedInput, match=why):
        network_of(changed(CHANGES[why]))


def test_a_layer_that_would_be_a_huge_matrix_is_refused():
    nodes = [("Conv", ["x", "w"], "c", {"pads": [1, 1, 1, 1]}), ("Flatten", ["c"], "y", {})]
    with pytest.raises(InputError, match="matrix"):
        network_of(model(nodes, {"w": tensor(64, 4, 3, 3)}, (4, 32, 32)).SerializeToString())


def test_a_small_file_cannot_ask_for_much_memory():
    nodes = [
        ("Conv", ["x" if k == 0 else f"h{k - 1}", "w"], "y" if k == 199 else f"h{k}", {})
        for k in range(200)
    ]
    data = model(nodes, {"w": tensor(1, 1, 1, 1)}, (1, 48, 48)).SerializeToString()
    with pytest.raises(InputError, match="'n12': the layers take over"):
        network_of(data)


def test_damaged_files_are_refused_and_nothing_else_happens():
    data = model([("Gemm", ["x", "w"], "y", {})], W, (4,)).SerializeToString()
    assert mutations.accepted(network_of, data, count=300, seed=9) < 300


def test_onnx_files_are_read_and_torch_pickles_are_not(tmp_path):
    path = tmp_path / "model.onnx"
    onnx.save(model([("Gemm", ["x", "w"], "y", {})], W, (4,)), path)
    assert read_model(path, labels=list("abcd")).labels == tuple("abcd")
    with pytest.raises(ModelNotSupported, match="--layers"):
        read_model(path, layers=path)
    for name in ("model.pt", "model.pth", "model.ckpt"):
        with pytest.raises(MalformedInput) as refused:
            read_model(tmp_path / name)
        assert "ONNX" in refused.value.remedy
        assert "safetensors" in refused.value.remedy


def test_a_convolutional_network_answers_the_same_on_encrypted_data():
    shape = (1, 8, 8)
    nodes = [
        ("Conv", ["x", "w"], "c", {"strides": [2, 2], "pads": [1, 1, 0, 0]}),
        ("Gelu", ["c"], "a", {}),
        ("AveragePool", ["a"], "p", {"kernel_shape": [2, 2], "strides": [2, 2]}),
        ("Flatten", ["p"], "f", {}),
        ("Gemm", ["f", "w1"], "y", {}),
    ]
    proto = model(nodes, {"w": tensor(4, 1, 3, 3, scale=0.4), "w1": tensor(16, 3)}, shape)
    x = RNG.normal(size=(200, 64)).astype(np.float32)
    ready = moai.ready(from_onnx(proto.SerializeToString(), x), x)
    got = np.stack([ready.infer(row).ravel() for row in x[:2].astype(np.float64)])
    want = expected(proto, x, shape)
    error = (got - want[:2]) / np.ptp(want, axis=0)
    assert np.abs(error).max() < 2 * ready.compiled.precision.approximation_max + 1e-3
