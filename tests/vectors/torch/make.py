"""Makes the `.pt2` files beside it, with inputs and PyTorch's own outputs. Needs torch 2.13.

python tests/vectors/torch/make.py
"""

import json
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

HERE = Path(__file__).parent


class Residual(nn.Module):
    """A residual block with a layer norm on either side, a GELU and dropout."""

    def __init__(self):
        super().__init__()
        self.enter = nn.Linear(6, 8)
        self.norm = nn.LayerNorm(8)
        self.wide = nn.Linear(8, 12)
        self.drop = nn.Dropout(0.3)
        self.narrow = nn.Linear(12, 8)
        self.leave = nn.Linear(8, 3)

    def forward(self, x):
        h = self.enter(x)
        return self.leave(h + self.narrow(self.drop(functional.gelu(self.wide(self.norm(h))))))


class Convolutional(nn.Module):
    """Convolutions, batch norm, pools, reshapes, and a softmax at the end."""

    def __init__(self):
        super().__init__()
        self.one = nn.Conv2d(1, 4, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.two = nn.Conv2d(4, 4, 3, padding="same", groups=2)
        self.pool = nn.AvgPool2d(2)
        self.all = nn.AdaptiveAvgPool2d(1)
        self.leave = nn.Linear(4, 3)

    def forward(self, x):
        x = torch.relu(self.norm(self.one(x)))
        x = self.all(self.pool(x + torch.tanh(self.two(x))))
        x = x.permute(0, 2, 3, 1).flatten(1)
        return torch.softmax(self.leave(x), -1)


class Sequence(nn.Module):
    """One-dimensional convolutions and a sigmoid gate; the batch is symbolic."""

    def __init__(self):
        super().__init__()
        self.one = nn.Conv1d(2, 3, 3, padding=1)
        self.gate = nn.Conv1d(2, 3, 1)
        self.pool = nn.AvgPool1d(2)
        self.leave = nn.Linear(12, 2)

    def forward(self, x):
        x = self.pool(self.one(x) * torch.sigmoid(self.gate(x)))
        return self.leave(x.reshape(x.shape[0], -1).unsqueeze(1).squeeze(1)) * 2.0 - 0.5


class Adapted(nn.Module):
    """A linear layer with a LoRA adapter beside it, SiLU, and a head with another."""

    def __init__(self):
        super().__init__()
        self.base = nn.Linear(16, 16)
        self.down = nn.Linear(16, 2, bias=False)
        self.up = nn.Linear(2, 16, bias=False)
        self.leave = nn.Linear(16, 2)

    def forward(self, x):
        return self.leave(functional.silu(self.base(x) + self.up(self.down(x)) * 0.5))


MODELS = {
    "residual": (Residual, (6,), None),
    "convolutional": (Convolutional, (1, 8, 8), None),
    "sequence": (Sequence, (2, 8), {0: torch.export.Dim("rows")}),
    "adapted": (Adapted, (16,), None),
}


def main():
    for name, (kind, shape, dynamic) in MODELS.items():
        torch.manual_seed(7)
        module = kind()
        for _ in range(20):  # running statistics
            module(torch.randn(16, *shape))
        module.eval()
        example = torch.randn(2 if dynamic else 1, *shape)
        shapes = None if dynamic is None else (dynamic,)
        program = torch.export.export(module, (example,), dynamic_shapes=shapes)
        for node in program.graph.nodes:  # they name files of the machine
            node.meta.pop("stack_trace", None)
        torch.export.save(program, HERE / f"{name}.pt2")
        x = torch.randn(8, *shape)
        with torch.no_grad():
            y = module(x)
        found = {"torch": torch.__version__, "x": x.flatten(1).tolist(), "y": y.tolist()}
        (HERE / f"{name}.json").write_text(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
