"""A reduced layer through the same code as MiniLM's: its values, its counts, and what is refused."""

import ast
import json
import math
from pathlib import Path

import numpy as np
import pytest
from tenseal import sealapi

import tensorguard
from support.research import HEADS, HIDDEN, INTERMEDIATE, TOKENS, inputs, reduced_layer
from tensorguard.errors import MalformedInput
from tensorguard.moai.research import approximate, attention, counts, feed_forward
from tensorguard.moai.research.client import Client, parameters
from tensorguard.moai.research.layer import from_tensors
from tensorguard.moai.research.packing import Packing
from tensorguard.moai.research.recipe import calibrate
from tensorguard.moai.research.runtime import Column, Runtime
from tensorguard.moai.seal import dump
from tensorguard.wire.frames import SecretKeyInUpload

VECTORS = Path(__file__).parents[3] / "vectors" / "research" / "layer.json"
SEQUENCES = 100  # of the 2,048 that fit: the others are copies of the first


class Evaluated:
    """One pass of the whole layer over ciphertexts, with the client's refreshes."""

    def __init__(self):
        self.layer = reduced_layer()
        self.recipe = calibrate(self.layer, inputs(1000, seed=1))
        self.client = Client(TOKENS)
        self.server = Runtime(self.client.keys.parameters)
        for step, key in self.client.rotation_keys():
            self.server.load_rotation(step, key)
        self.server.load_relinearisation(self.client.keys.relinearisation_key())
        packing, layer, recipe, server = (
            self.client.packing, self.layer, self.recipe, self.server,
        )  # fmt: skip
        self.x = inputs(SEQUENCES, seed=2)
        self.y = self.block(
            self.x,
            attention.LEVELS,
            lambda c: attention.attention(server, packing, layer, recipe, c),
        )
        self.z = self.block(
            self.y,
            feed_forward.LEVELS,
            lambda c: feed_forward.feed_forward(server, layer, recipe, c),
        )
        self.out = self.block(
            self.z,
            feed_forward.norm_levels(recipe),
            lambda c: feed_forward.norm(server, layer, recipe, c),
        )

    def block(self, x, level, evaluate):
        columns = [self.server.load(b, level=level) for b in self.client.encrypt(x, level=level)]
        results = [self.server.write(column) for column in evaluate(columns)]
        return self.client.decrypt(results, sequences=len(x))


@pytest.fixture(scope="module")
def evaluated():
    return Evaluated()


def rms(got, expected):
    return float(np.sqrt(((got - expected) ** 2).mean()) / expected.std())


@pytest.mark.invariant("TG-I80")
def test_the_reference_is_pytorchs_layer():
    """The vectors are PyTorch's: written by `examples/minilm/check_torch.py --write`."""
    stored = json.loads(VECTORS.read_text())
    layer, x = reduced_layer(), inputs(4, seed=3)
    y = layer.attention(x)
    ours = {"attention": y, "feed-forward": layer.feed_forward(y), "norm": layer(x)}
    assert stored.pop("torch").startswith("2.13")
    assert stored.keys() == ours.keys()
    for name, expected in stored.items():
        assert np.abs(ours[name] - np.array(expected)).max() < 1e-10, name


@pytest.mark.invariant("TG-I81")
def test_encrypted_blocks_are_their_polynomials_but_for_noise(evaluated):
    layer, recipe = evaluated.layer, evaluated.recipe
    assert rms(evaluated.y, approximate.attention(layer, recipe, evaluated.x)) < 2e-3
    assert rms(evaluated.z, approximate.feed_forward(layer, recipe, evaluated.y)) < 1e-4
    assert rms(evaluated.out, approximate.norm(layer, recipe, evaluated.z)) < 1e-4


@pytest.mark.invariant("TG-I81")
def test_the_encrypted_layer_is_the_layer(evaluated):
    layer, x = evaluated.layer, evaluated.x
    y = layer.attention(x)
    assert rms(evaluated.y, y) < 2e-2
    assert rms(evaluated.z, layer.feed_forward(y)) < 2e-2
    assert rms(evaluated.out, layer(x)) < 2e-2
    # the blocks do something: these bounds would not hold for their inputs
    assert rms(x, y) > 0.3
    assert rms(evaluated.y, layer.feed_forward(y)) > 0.3


@pytest.mark.invariant("TG-I82")
def test_counted_operations_are_those_of_the_packing(evaluated):
    shape = counts.Shape.of(evaluated.layer, evaluated.client.packing, evaluated.recipe)
    assert shape == counts.Shape(TOKENS, 2, HIDDEN, HEADS, INTERMEDIATE, 2)
    assert evaluated.server.counts == counts.expected(shape)


@pytest.mark.invariant("TG-I82")
def test_only_products_of_tokens_by_tokens_rotate(evaluated):
    rotating = {stage for stage, count in evaluated.server.counts.items() if count["rotations"]}
    assert rotating == {"scores", "values"}
    for stage in ("projections", "softmax", "output", "norm", "intermediate", "gelu", "final"):
        assert evaluated.server.counts[stage]["rotations"] == 0
        assert evaluated.server.counts[stage]["rescales"] > 0


@pytest.mark.invariant("TG-I82")
def test_one_head_of_bert_base_takes_the_published_rotations():
    """9,648 for 128 tokens and 64 features of a head, as summaries of the paper's table say."""
    packing = Packing(128, 32768)
    stages = counts.attention_stages(counts.Shape(128, packing.baby, 64, 1, 256, 0))
    assert (packing.baby, packing.giant) == (16, 8)
    assert sum(stage["rotations"] for stage in stages.values()) == 9648


@pytest.mark.invariant("TG-I83")
def test_nothing_outside_the_tier_imports_it():
    root = Path(tensorguard.__file__).parent
    tier = root / "moai" / "research"
    seen = set()
    for path in root.rglob("*.py"):
        if path.is_relative_to(tier):
            seen.add(path.name)
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                names = [
                    node.module or "",
                    *(f"{node.module}.{alias.name}" for alias in node.names),
                ]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            else:
                continue
            assert not [name for name in names if "moai.research" in name], path
    assert {"attention.py", "feed_forward.py", "runtime.py", "client.py"} <= seen


def test_the_parameters_are_of_the_128_bit_table():
    ours = parameters()
    moduli = (*ours.primes, ours.special)
    assert (ours.degree, ours.levels) == (16384, attention.LEVELS)
    assert math.prod(moduli).bit_length() <= 438


def test_a_packing_rotates_tokens_of_every_sequence_alike():
    packing = Packing(4, 32)
    x = np.arange(8 * 4 * 3, dtype=float).reshape(8, 4, 3)
    columns = packing.columns(x)
    assert columns.shape == (3, 32)
    turned = np.roll(columns, -packing.step(1), axis=1)
    assert np.array_equal(packing.rows(turned, sequences=8), np.roll(x, -1, axis=1))
    assert np.array_equal(packing.rows(columns, sequences=5), x[:5])
    assert np.array_equal(packing.rows(packing.columns(x[:2]), sequences=8)[2:], x[[0] * 6])
    assert packing.steps == (8, 16, 24)
    assert packing.baby * packing.giant == 4
    for refused in (x[:, :2], np.zeros((9, 4, 3)), np.zeros((0, 4, 3))):
        with pytest.raises(MalformedInput):
            packing.columns(refused)
    for tokens, slots in ((1, 32), (3, 48), (64, 32), (0, 32)):
        with pytest.raises(MalformedInput):
            Packing(tokens, slots)


def test_weights_that_are_no_layer_are_refused():
    with pytest.raises(MalformedInput, match="there is no tensor"):
        from_tensors({}, heads=2)
    layer = reduced_layer()
    for heads in (0, 3):
        with pytest.raises(MalformedInput, match="heads"):
            type(layer)(heads, *(getattr(layer, name) for name in layer.__slots__[1:]))
    mixed = [getattr(layer, name) for name in layer.__slots__[1:]]
    mixed[0] = layer.final
    with pytest.raises(MalformedInput, match="matrices"):
        type(layer)(2, *mixed)


def test_calibration_without_sequences_is_refused():
    with pytest.raises(MalformedInput):
        calibrate(reduced_layer(), np.zeros((0, TOKENS, HIDDEN)))


def test_unequal_scales_are_never_added(evaluated):
    server, client = evaluated.server, evaluated.client
    (blob, *_) = client.encrypt(evaluated.x, level=2)
    column = server.load(blob, level=2)
    other = Column(column.ciphertext, column.scale * (1 + 1e-6))
    for operation in (server.add, server.subtract):
        with pytest.raises(MalformedInput, match="scales"):
            operation(column, other)
    with pytest.raises(MalformedInput, match="scales"):
        server.write(other)


def test_a_row_of_zeros_still_hides_its_result(evaluated):
    """A result without a second polynomial would be in the clear; the client refuses such."""
    server, client = evaluated.server, evaluated.client
    columns = [server.load(blob, level=2) for blob in client.encrypt(evaluated.x, level=2)]
    blobs = [server.write(y) for y in server.linear(columns, np.zeros((2, HIDDEN)))]
    assert np.abs(client.decrypt(blobs, sequences=SEQUENCES)).max() < 1e-4


def test_the_server_refuses_secrets_and_other_levels(evaluated):
    server, client = evaluated.server, evaluated.client
    generator = sealapi.KeyGenerator(client.keys._seal.context)
    secret = dump(generator.secret_key())
    (blob, *_) = client.encrypt(evaluated.x, level=2)
    for load in (
        lambda b: server.load(b, level=2),
        lambda b: server.load_rotation(client.packing.step(1), b),
        server.load_relinearisation,
    ):
        with pytest.raises(SecretKeyInUpload):
            load(secret)
        with pytest.raises(MalformedInput):
            load(b"")
    assert server.load(blob, level=2).level == 2
    with pytest.raises(MalformedInput):
        server.load(blob, level=3)
    with pytest.raises(MalformedInput):
        server.load_rotation(
            client.packing.step(2), client.keys.rotation_key(client.packing.step(1))
        )
