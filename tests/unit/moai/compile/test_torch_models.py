"""PyTorch's `.pt2` files, read without torch and compared with PyTorch's own outputs."""

import io
import json
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from support import moai, mutations
from tensorguard.errors import MalformedInput
from tensorguard.moai.compile import from_torch, read_model
from tensorguard.moai.compile.build import compile_network
from tensorguard.moai.compile.from_torch import TorchMissing, network_of
from tensorguard.moai.compile.network import ModelNotSupported, merged
from tensorguard.moai.compile.torch_file import PickleInside
from tensorguard.moai.plan import TooDeep

VECTORS = Path(__file__).parents[3] / "vectors" / "torch"
NAMES = ("residual", "convolutional", "sequence", "adapted")
GRAPH = "models/model.json"
WEIGHTS = "data/weights/model_weights_config.json"


def vector(name):
    found = json.loads((VECTORS / f"{name}.json").read_text())
    return (VECTORS / f"{name}.pt2").read_bytes(), np.array(found["x"]), np.array(found["y"])


def finished(network, x):
    raw = network.raw(x)
    if network.output_activation == "softmax":
        raw = np.exp(raw - raw.max(axis=1, keepdims=True))
        return raw / raw.sum(axis=1, keepdims=True)
    return raw


@pytest.mark.invariant("TG-I72")
@pytest.mark.parametrize("name", NAMES)
def test_the_network_answers_as_pytorch_did(name):
    data, x, y = vector(name)
    network = network_of(data)
    np.testing.assert_allclose(finished(network, x), y, rtol=1e-4, atol=1e-5)
    assert network.source == "pytorch"
    assert "torch" not in sys.modules


def test_layers_are_merged_as_from_onnx():
    adapted = merged(network_of(vector("adapted")[0]).steps)
    assert [layer.weight.shape for layer in adapted] == [(16, 16), (2, 16)]
    kinds = [getattr(x, "kind", "dense") for x in merged(network_of(vector("residual")[0]).steps)]
    assert kinds.count("add") == kinds.count("product") == 1


def test_a_module_with_residual_and_layer_norm_answers_the_same_on_encrypted_data():
    data, _, _ = vector("residual")
    rng = np.random.default_rng(2)
    rows = 1 + 0.25 * rng.normal(size=(400, 6))
    network = network_of(data)
    with pytest.raises(TooDeep, match=r"MiB is the most; layer linear\d"):
        compile_network(network, rng.normal(size=(400, 6)), degree=7)
    ready = moai.ready(compile_network(network, rows, error_budget=0.1), rows, name="torch")
    truth = network.raw(rows)
    error = (np.stack([ready.infer(x) for x in rows[:3]]) - truth[:3]) / np.ptp(truth, axis=0)
    assert np.abs(error).max() < 2 * ready.compiled.precision.approximation_max + 1e-3
    assert ready.pack.manifest.provenance.source == "pytorch"


def changed(name="residual", *, graph=None, weights=None, members=None, **options):
    """Return the file with its graph, its table of weights or its members changed."""
    source = zipfile.ZipFile(io.BytesIO(vector(name)[0]))
    folder = source.namelist()[0].split("/")[0]
    content = {n.removeprefix(f"{folder}/"): source.read(n) for n in source.namelist()}
    for member, change in ((GRAPH, graph), (WEIGHTS, weights)):
        if change:
            document = json.loads(content[member])
            change(document)
            content[member] = json.dumps(document).encode()
    if members:
        members(content)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", **options) as target:
        for member, value in content.items():
            target.writestr(f"{folder}/{member}", value)
    return buffer.getvalue()


def first(document):
    return document["config"]["enter.weight"]


def nodes(document):
    return document["graph_module"]["graph"]["nodes"]


def signature(document):
    return document["graph_module"]["signature"]


WEIGHT_CHANGES = {
    "runs code": (PickleInside, lambda d: first(d).update(use_pickle=True)),
    "size of its shape": (MalformedInput, lambda d: first(d)["tensor_meta"]["sizes"].__setitem__(0, {"as_int": 9})),
    "usable shape": (MalformedInput, lambda d: first(d)["tensor_meta"]["sizes"].append({"as_int": 2})),
    "missing or too large": (MalformedInput, lambda d: first(d).update(path_name="weight_../../x")),
    "float32 or int64": (ModelNotSupported, lambda d: first(d)["tensor_meta"].update(dtype=13)),
    "size of its  shape": (MalformedInput, lambda d: first(d)["tensor_meta"].update(storage_offset={"as_int": -1})),
    "numbers": (ModelNotSupported, lambda d: first(d)["tensor_meta"].update(sizes=[{"as_int": 1 << 40}], strides=[{"as_int": 0}])),
    "is not in the file": (MalformedInput, lambda d: d["config"].pop("enter.weight")),
}  # fmt: skip


@pytest.mark.invariant("TG-I73")
@pytest.mark.parametrize("why", WEIGHT_CHANGES)
def test_weights_that_lie_or_are_pickles_are_refused(why):
    kind, change = WEIGHT_CHANGES[why]
    with pytest.raises(kind, match=why.replace("  ", " ")):
        network_of(changed(weights=change))


def retarget(number, target):
    return lambda d: nodes(d)[number].update(target=target)


def argument(op, name, value):
    def change(document):
        node = next(x for x in nodes(document) if f".{op}." in x["target"])
        next(x for x in node["inputs"] if x["name"] == name)["arg"] = value

    return change


GRAPH_CHANGES = {
    "no operator of PyTorch's": retarget(0, "torch.ops.mylib.linear.default"),
    "not supported": retarget(0, "torch.ops.aten.cumsum.default"),
    "average pooling": retarget(2, "torch.ops.aten.max_pool2d.default"),
    "use Relu": retarget(3, "torch.ops.aten.leaky_relu.default"),
    "training mode": argument("dropout", "train", {"as_bool": True}),
    "schema": lambda d: d["schema_version"].update(major=9),
    "1 to .* nodes": lambda d: nodes(d).clear(),
    "batch": lambda d: d["graph_module"]["graph"]["tensor_values"]["x"]["sizes"].__setitem__(0, {"as_int": 3}),
    "other outputs": lambda d: signature(d)["output_specs"].append(signature(d)["output_specs"][0]),
    "0 inputs": lambda d: signature(d)["input_specs"].pop(),
    "not one that torch.export.save": lambda d: d["graph_module"].pop("graph"),
    "not defined before": lambda d: nodes(d).reverse(),
    "of the kind": argument("linear", "input", {"as_graph": {}}),
    "not that of the value": argument("layer_norm", "normalized_shape", {"as_ints": [7]}),
}  # fmt: skip


@pytest.mark.parametrize("why", GRAPH_CHANGES)
def test_graphs_that_cannot_be_lowered_are_refused_with_the_reason(why):
    with pytest.raises(MalformedInput, match=why):
        network_of(changed(graph=GRAPH_CHANGES[why]))


def test_a_refused_node_is_named_with_its_module():
    with pytest.raises(ModelNotSupported, match=r"node 'gelu'.*cumsum|'linear' in 'enter'"):
        network_of(changed(graph=retarget(0, "torch.ops.aten.cumsum.default")))


def test_other_archives_are_refused():
    data = vector("residual")[0]
    for bad in (b"", b"PK", data[:2000], changed(compression=zipfile.ZIP_DEFLATED)):
        with pytest.raises(MalformedInput):
            network_of(bad)
    for name, value in (("archive_format", b"zip"), ("byteorder", b"big")):
        with pytest.raises(MalformedInput):
            network_of(changed(members=lambda c, n=name, v=value: c.update({n: v})))
    with pytest.raises(MalformedInput, match="missing"):
        network_of(changed(members=lambda c: c.pop(GRAPH)))


def test_sample_inputs_are_never_opened():
    bomb = b"cos\nsystem\n(S'exit 1'\ntR."
    data = changed(members=lambda c: c.update({"data/sample_inputs/model.pt": bomb}))
    assert len(network_of(data).layers) == len(network_of(vector("residual")[0]).layers)


def test_damaged_files_are_refused_and_nothing_else_happens():
    data = vector("adapted")[0]
    assert mutations.accepted(network_of, data, count=150, seed=9) < 150


def test_pt2_files_take_labels_and_pickles_say_how_to_convert(tmp_path):
    (tmp_path / "m.pt2").write_bytes(vector("adapted")[0])
    assert read_model(tmp_path / "m.pt2", labels=["a", "b"]).labels == ("a", "b")
    with pytest.raises(MalformedInput) as refused:
        read_model(tmp_path / "m.pt")
    assert "torch.export.save" in refused.value.remedy


def test_a_module_in_memory_needs_torch(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(TorchMissing, match="not installed"):
        from_torch(object(), None, np.zeros((16, 2)))
