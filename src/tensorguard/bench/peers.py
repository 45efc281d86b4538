"""Peers with an environment of their own: each is a child process of its own interpreter.

The child gets the network's weights and one input at a time, as lines of JSON, and times what its server
does, so that a round can take its turn between ours. Its script imports nothing of this package.
"""

from __future__ import annotations

import importlib.util
import json
import selectors
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from tensorguard.bench.heads import Head, spread
from tensorguard.bench.timing import Measurement
from tensorguard.errors import InputError, TensorGuardError
from tensorguard.moai.parameters import CkksParameters

Floats = npt.NDArray[np.float64]
SETUP_SECONDS: Final = 600.0  # to compile and to make keys
ANSWER_SECONDS: Final = 300.0
MAX_LINE: Final = 1 << 24
MAX_QUANTISED_WEIGHTS: Final = 4096  # of a layer: a quantised one takes seconds per thousand
_FIT_ROWS = 256


@dataclass(frozen=True, slots=True)
class PeerRow:
    """The script that speaks for a peer, and the module by which our own interpreter has it.

    `refuses` says of a head why it is not measured, or nothing.
    """

    script: str
    module: str
    refuses: Callable[[Head], str]
    slow: bool = False  # too slow for `--quick`


def _single_samples(head: Head) -> str:
    return "it has no packing for batches" if head.batch else ""


def _small_classifiers(head: Head) -> str:
    largest = max(layer.weight.size for layer in head.network.layers)
    if not head.classes or head.batch or largest > MAX_QUANTISED_WEIGHTS:
        return "it is measured on the small classifier alone"
    return ""


PEERS: Mapping[str, PeerRow] = MappingProxyType(
    {
        "orion": PeerRow("peer_orion.py", "orion_evaluator", _single_samples),
        "concrete-ml": PeerRow("peer_concrete_ml.py", "concrete.ml", _small_classifiers, slow=True),
    }
)


class PeerUnknown(InputError):
    code = "bench_peer"
    remedy = "Pass --peer NAME=PYTHON with a peer's name and the interpreter that has it."


class PeerFailed(TensorGuardError):
    code = "bench_peer_failed"
    remedy = "Make the peer's environment anew with scripts/bench-peers.sh."


def interpreters(options: Mapping[str, Path]) -> tuple[dict[str, Path], list[str]]:
    """Return each peer's interpreter, ours where it has the peer, and the peers without one."""
    unknown = set(options) - set(PEERS)
    if unknown:
        raise PeerUnknown(f"there is no peer {', '.join(sorted(unknown))}")
    found, missing = dict(options), []
    for name, row in PEERS.items():
        if name in found:
            continue
        if _installed(row.module):
            found[name] = Path(sys.executable)
        else:
            missing.append(f"{name}: it is not installed (scripts/bench-peers.sh)")
    return found, missing


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of the package that it would be in
        return False


class Peer:
    """One network in a peer's process, from `open` until `close`."""

    def __init__(self, name: str, interpreter: Path, head: Head) -> None:
        self._name = name
        self._head = head
        folder = Path(__file__).parent
        scripts = [str(folder / "peer_process.py"), str(folder / PEERS[name].script)]
        try:
            self._process = subprocess.Popen(
                [str(interpreter), "-I", *scripts],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                bufsize=0,
            )
        except OSError as error:
            raise PeerFailed(f"{name}: {interpreter} cannot be run: {error.strerror}") from error
        self._pending = b""
        self.versions: dict[str, str] = {}

    @classmethod
    def open(cls, name: str, interpreter: Path, head: Head, parameters: CkksParameters) -> Peer:
        """Start the process and let it prepare a head. Raises `PeerFailed`, with no process left."""
        peer = cls(name, interpreter, head)
        try:
            ready = peer._ask(_network(head, parameters), seconds=SETUP_SECONDS)
            peer.versions = {str(k): str(v) for k, v in dict(ready["versions"]).items()}
        except BaseException:
            peer.close()
            raise
        return peer

    def measure(self, x: Floats) -> Measurement:
        """Let the peer encrypt one raw input, evaluate it (this is timed) and decrypt the result."""
        network = self._head.network
        values = ((x - network.mean) / network.std).tolist()
        answer = self._ask({"input": values}, seconds=ANSWER_SECONDS)
        outputs = np.array(answer["output"], dtype=np.float64)
        outputs = outputs * network.output_scale + network.output_offset
        return Measurement(outputs, wall=float(answer["wall"]), cpu=float(answer["cpu"]))

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def _ask(self, message: Mapping[str, object], *, seconds: float) -> dict[str, Any]:
        if self._process.stdin is None:
            raise PeerFailed(f"{self._name}: the process takes no input")
        try:
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
            answer = json.loads(self._line(time.monotonic() + seconds))
        except (OSError, ValueError) as error:
            raise PeerFailed(f"{self._name}: the process ended or answered no JSON") from error
        if "error" in answer:
            raise PeerFailed(f"{self._name}: {answer['error']}")
        return dict(answer)

    def _line(self, deadline: float) -> bytes:
        pipe = self._process.stdout
        if pipe is None:
            raise PeerFailed(f"{self._name}: the process gives no output")
        with selectors.DefaultSelector() as selector:
            selector.register(pipe, selectors.EVENT_READ)
            while b"\n" not in self._pending:
                if not selector.select(max(deadline - time.monotonic(), 0)):
                    raise PeerFailed(f"{self._name}: no answer in time")
                part = pipe.read(1 << 16)
                if not part or len(self._pending) > MAX_LINE:
                    raise PeerFailed(f"{self._name}: the process ended")
                self._pending += part
        line, _, self._pending = self._pending.partition(b"\n")
        return line


def _network(head: Head, parameters: CkksParameters) -> dict[str, object]:
    """Return the weights, rows to fit on, and the ring that our own pack has."""
    network = head.network
    rows = (spread(head.calibration, _FIT_ROWS) - network.mean) / network.std
    return {
        "layers": [
            {
                "weight": layer.weight.tolist(),
                "bias": layer.bias.tolist(),
                "coefficients": list(layer.activation.coefficients) if layer.activation else None,
                "basis": layer.activation.basis if layer.activation else None,
            }
            for layer in network.layers
        ],
        "elementwise": head.elementwise,
        "rows": rows.tolist(),
        "ring": {
            "degree": parameters.degree,
            "scale_bits": parameters.scale_bits,
            "first_bits": parameters.primes[0].bit_length(),
            "special_bits": parameters.special.bit_length(),
        },
    }
