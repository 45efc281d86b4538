"""Concrete ML, quantised networks on TFHE, for the inference bench: run by its own interpreter.

The network comes as an ONNX graph with the same weights and the same polynomials, and is quantised to six
bits on rows of the head's inputs. Timed is the circuit's run, without any serialisation.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import onnx
from concrete.ml.torch.compile import compile_onnx_model
from onnx import helper, numpy_helper

DISTRIBUTIONS = ("concrete-ml", "concrete-python")
BITS = 6
OPSET, IR_VERSION = 14, 8  # what Concrete ML reads


class Peer:
    """A quantised circuit with its keys."""

    def __init__(self, message: dict[str, Any]) -> None:
        if any(layer["basis"] == "chebyshev" for layer in message["layers"]):
            raise ValueError("only powers are written into the graph")
        rows = np.array(message["rows"], dtype=np.float32)
        self._module = compile_onnx_model(
            _graph(message["layers"], rows.shape[1]),
            rows,
            n_bits=BITS,
            rounding_threshold_bits={"n_bits": BITS, "method": "approximate"},
        )
        self._module.fhe_circuit.keygen()

    def infer(self, values: list[float]) -> dict[str, Any]:
        """Encrypt, evaluate (timed) and decrypt."""
        circuit = self._module.fhe_circuit
        row = np.array([values], dtype=np.float32)
        encrypted = circuit.encrypt(self._module.quantize_input(row))
        wall, cpu = time.perf_counter(), time.process_time()
        result = circuit.run(encrypted)
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        output = self._module.dequantize_output(circuit.decrypt(result))
        return {"output": output[0].tolist(), "wall": wall, "cpu": cpu}


def _graph(layers: list[dict[str, Any]], features: int) -> onnx.ModelProto:
    """Return MatMul and Add for each layer, and Horner's scheme for each polynomial."""
    nodes, constants = [], []
    last = "x"

    def step(kind: str, constant: Any, name: str) -> None:
        nonlocal last
        if not isinstance(constant, str):
            constants.append(numpy_helper.from_array(np.array(constant, np.float32), f"{name}.c"))
            constant = f"{name}.c"
        nodes.append(helper.make_node(kind, [last, constant], [name]))
        last = name

    for index, layer in enumerate(layers):
        step("MatMul", np.transpose(layer["weight"]), f"product{index}")
        step("Add", layer["bias"], f"linear{index}")
        if layer["coefficients"] is None:
            continue
        linear, (*lower, highest) = last, layer["coefficients"]
        step("Mul", [highest], f"horner{index}.top")
        for power, coefficient in reversed(list(enumerate(lower))):
            step("Add", [coefficient], f"horner{index}.{power}")
            if power:
                step("Mul", linear, f"horner{index}.{power}z")
    outputs = len(layers[-1]["bias"])
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", features])],
        [helper.make_tensor_value_info(last, onnx.TensorProto.FLOAT, ["n", outputs])],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)])
    model.ir_version = IR_VERSION
    return model
