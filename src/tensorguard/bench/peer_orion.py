"""Orion, the CKKS compiler on Lattigo, for the inference bench: run by Orion's own interpreter.

It gets the ring and the sizes of primes of our own pack, with secrets of two thirds non-zero
coefficients as ours have, and Orion's defaults for everything else. Timed is `Evaluator.forward`: from
the bytes of a ciphertext to the bytes of the result.
"""

from __future__ import annotations

import time
from typing import Any

import orion_compiler.nn as on
import torch
from lattigo import ckks, rlwe
from orion_compiler import CKKSParams, Compiler
from orion_compiler.nn.activation import Activation, Chebyshev
from orion_evaluator import Evaluator, Model

DISTRIBUTIONS = ("orion-v2-compiler", "orion-v2-evaluator", "orion-v2-lattigo")


class Given(Chebyshev):  # type: ignore[misc]
    """A polynomial whose Chebyshev coefficients are given, on [-1, 1]."""

    def __init__(self, coefficients: list[float]) -> None:
        super().__init__(len(coefficients) - 1, self.fn)
        self.set_coeffs(coefficients)
        self.set_depth()

    def fit(self, context: Any) -> None:
        """Keep the given coefficients."""

    def fn(self, x: torch.Tensor) -> torch.Tensor:
        """Evaluate in the clear, by Clenshaw's recurrence."""
        first, second = torch.zeros_like(x), torch.zeros_like(x)
        for coefficient in reversed(self.coeffs[1:]):
            first, second = coefficient + 2 * x * first - second, first
        return self.coeffs[0] + x * first - second


class Net(on.Module):  # type: ignore[misc]
    """The layers of the message, in order."""

    def __init__(self, message: dict[str, Any]) -> None:
        super().__init__()
        steps = []
        for layer in message["layers"][: 1 if message["elementwise"] else None]:
            if not message["elementwise"]:
                steps.append(_linear(layer))
            if layer["coefficients"] is not None:
                given = Given if layer["basis"] == "chebyshev" else Activation
                steps.append(given(layer["coefficients"]))
        self.steps = torch.nn.ModuleList(steps)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Evaluate in the clear."""
        for step in self.steps:
            x = step(x)
        return x

    @property
    def depth_needed(self) -> int:
        """Return the levels that the layers take."""
        return sum(step.depth for step in self.steps)


class Peer:
    """A compiled network, one client of it and its server."""

    def __init__(self, message: dict[str, Any]) -> None:
        net, ring = Net(message).double(), message["ring"]
        parameters = CKKSParams(
            logn=ring["degree"].bit_length() - 1,
            logq=[ring["first_bits"], *[ring["scale_bits"]] * net.depth_needed],
            logp=[ring["special_bits"]],
            log_default_scale=ring["scale_bits"],
            h=ring["degree"] * 2 // 3,
            ring_type="standard",
        )
        compiler = Compiler(net, parameters)
        rows = torch.tensor(message["rows"], dtype=torch.float64)
        compiler.fit(rows[:1])  # its layers take their batch size from here
        self._model = Model.load(compiler.compile().to_bytes())
        given, manifest, self._level = self._model.client_params()
        self._parameters = ckks.Parameters.from_dict(given)
        generator = rlwe.KeyGenerator(self._parameters)
        secret = generator.gen_secret_key()
        public, relinearisation = (
            generator.gen_public_key(secret),
            generator.gen_relin_key(secret),
        )
        galois = [generator.gen_galois_key(secret, x) for x in manifest["galois_elements"]]
        keys = rlwe.MemEvaluationKeySet(relinearisation, galois)
        self._evaluator = Evaluator(given, keys.marshal_binary())
        self._encoder = ckks.Encoder(self._parameters)
        self._encryptor = rlwe.Encryptor(self._parameters, public)
        self._decryptor = rlwe.Decryptor(self._parameters, secret)
        self._outputs = net(rows[:1]).shape[1]

    def infer(self, values: list[float]) -> dict[str, Any]:
        """Encrypt, evaluate (timed) and decrypt."""
        slots = self._parameters.max_slots()
        padded = values + [0.0] * (slots - len(values))
        plaintext = self._encoder.encode(padded, self._level, self._parameters.default_scale())
        frame = self._encryptor.encrypt_new(plaintext).marshal_binary()
        wall, cpu = time.perf_counter(), time.process_time()
        (result,) = self._evaluator.forward(self._model, [frame])
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        decrypted = self._decryptor.decrypt_new(rlwe.Ciphertext.unmarshal_binary(result))
        return {
            "output": self._encoder.decode(decrypted, slots)[: self._outputs],
            "wall": wall,
            "cpu": cpu,
        }


def _linear(layer: dict[str, Any]) -> Any:
    weight = torch.tensor(layer["weight"], dtype=torch.float64)
    module = on.Linear(weight.shape[1], weight.shape[0])
    module.weight = torch.nn.Parameter(weight)
    module.bias = torch.nn.Parameter(torch.tensor(layer["bias"], dtype=torch.float64))
    return module
