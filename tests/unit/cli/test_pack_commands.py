import json
import stat

import numpy as np
import pytest
from onnx import helper, numpy_helper
from safetensors.numpy import save
from typer.testing import CliRunner

from tensorguard.cli.pack import app
from tensorguard.errors import ConfigurationError, MalformedInput, TensorGuardError
from tensorguard.keys import development, registry
from tensorguard.keys.provider import Algorithm, Purpose, key_id
from tensorguard.settings import Settings

runner = CliRunner()
LAYERS = {
    "input": {"features": 3},
    "layers": [
        {"kind": "linear", "weight": "w0", "bias": "b0"},
        {"kind": "activation", "function": "tanh"},
        {"kind": "linear", "weight": "w1", "bias": "b1"},
    ],
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TG_ENVIRONMENT", "development")
    monkeypatch.setenv("TG_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("TG_TRUST_STORE", raising=False)
    provider = registry.open_provider(development.complete(Settings.from_environment()))
    for name, algorithm, purpose in (
        ("packs", Algorithm.hybrid, Purpose.pack_signing),
        ("tokens", Algorithm.ed25519, Purpose.token_signing),
    ):
        provider.create(key_id(name), algorithm=algorithm, purpose=purpose)
    (tmp_path / "trust").mkdir()
    public = provider.public_key(key_id("packs")).hybrid()
    (tmp_path / "trust" / "packs.pub.json").write_bytes(public.to_json(name="packs"))
    rng = np.random.default_rng(0)
    shapes = {"w0": (5, 3), "b0": (5,), "w1": (2, 5), "b1": (2,)}
    tensors = {name: rng.normal(size=shape) for name, shape in shapes.items()}
    (tmp_path / "m.safetensors").write_bytes(save(tensors))
    (tmp_path / "layers.json").write_text(json.dumps(LAYERS))
    np.save(tmp_path / "rows.npy", rng.normal(size=(100, 3)))
    return tmp_path


def call(*words):
    result = runner.invoke(app, [str(word) for word in words])
    if isinstance(result.exception, TensorGuardError):
        raise result.exception
    return result


def build(folder, *more, key="packs"):
    return call(
        "build", folder / "m.safetensors", "--layers", folder / "layers.json",
        "--calibration", folder / "rows.npy", "--name", "toy", "--version", "1.0",
        "--out", folder / "toy.moai", "--signer-key", key, *more,
    )  # fmt: skip


def test_build_verify_inspect_and_simulate(folder):
    built = json.loads(build(folder, "--json").stdout)
    assert built["manifest"]["name"] == "toy"
    assert stat.S_IMODE((folder / "toy.moai").stat().st_mode) == 0o644
    verified = json.loads(
        call("verify", folder / "toy.moai", "--trust-store", folder / "trust", "--json").stdout
    )
    assert verified["pack_id"] == built["pack_id"]
    assert verified["signature"] == "verified, by packs"
    inspected = json.loads(call("inspect", folder / "toy.moai", "--json").stdout)
    assert inspected["signature"] == "not checked"
    assert "N=8192" in call("inspect", folder / "toy.moai").stdout
    finished = json.loads(
        call("simulate", folder / "toy.moai", "--calibration", folder / "rows.npy",
             "--trust-store", folder / "trust", "--json").stdout
    )  # fmt: skip
    planned = json.loads(
        call("simulate", folder / "m.safetensors", "--layers", folder / "layers.json",
             "--calibration", folder / "rows.npy", "--json").stdout
    )  # fmt: skip
    assert finished["ckks_rms"] == pytest.approx(planned["ckks_rms"], rel=0.05)
    assert planned == built["manifest"]["precision"]


def test_a_pack_over_its_budget_is_not_written(folder):
    with pytest.raises(TensorGuardError, match="layer activation0"):
        build(folder, "--error-budget", "1e-9")
    assert not (folder / "toy.moai").exists()


@pytest.mark.parametrize(("size", "layout"), [(1, "blocks"), (4096, "columns")])
def test_build_chooses_the_packing_for_a_batch_size(folder, size, layout):
    manifest = json.loads(build(folder, "--batch-size", size, "--json").stdout)["manifest"]
    assert manifest["packing"].get("layout", "blocks") == layout
    assert manifest["provenance"]["options"]["batch-size"] == str(size)


def test_a_batch_size_and_a_forced_packing_contradict_each_other(folder):
    refused = build(folder, "--batch-size", "8", "--batch")
    assert refused.exit_code == 2
    assert not (folder / "toy.moai").exists()


def test_a_key_of_another_purpose_signs_no_pack(folder):
    for key in ("tokens", "absent", "../packs"):
        with pytest.raises(TensorGuardError):
            build(folder, key=key)
    assert not (folder / "toy.moai").exists()


def test_verify_needs_a_trust_store_and_a_whole_pack(folder):
    build(folder)
    with pytest.raises(ConfigurationError):
        call("verify", folder / "toy.moai")
    with pytest.raises(ConfigurationError):
        call("verify", folder / "toy.moai", "--trust-store", folder / "home")
    (folder / "cut.moai").write_bytes((folder / "toy.moai").read_bytes()[:-1])
    with pytest.raises(MalformedInput):
        call("verify", folder / "cut.moai", "--trust-store", folder / "trust")


def test_build_and_simulate_write_a_report_and_take_onnx(folder):
    build(folder, "--report", folder / "report.html")
    assert "toy 1.0: precision report" in (folder / "report.html").read_text()
    call("simulate", folder / "toy.moai", "--calibration", folder / "rows.npy",
         "--trust-store", folder / "trust", "--report", folder / "again.html")  # fmt: skip
    assert "normalised inputs" in (folder / "again.html").read_text()

    weight = numpy_helper.from_array(np.eye(3, dtype=np.float32), "w")
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    values = [helper.make_tensor_value_info(name, 1, ["batch", 3]) for name in "xy"]
    graph = helper.make_graph([node], "g", values[:1], values[1:], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    labels = [word for name in ("a", "b", "c") for word in ("--label", name)]
    call("build", folder / "model.onnx", "--calibration", folder / "rows.npy", "--name", "toy",
         "--version", "2", "--out", folder / "two.moai", "--signer-key", "packs", *labels)  # fmt: skip
    manifest = json.loads(call("inspect", folder / "two.moai", "--json").stdout)["manifest"]
    assert manifest["output"]["labels"] == ["a", "b", "c"]
    assert manifest["provenance"]["source"] == "onnx"
    with pytest.raises(MalformedInput, match="pickle"):
        call("simulate", folder / "model.pth", "--calibration", folder / "rows.npy")
