"""One inference, measured: the server's part in seconds, and what the client decrypts."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Measurement:
    """Seconds of the server's part, and the outputs."""

    outputs: Floats
    wall: float
    cpu: float


class Variant(Protocol):
    """One program that can be measured."""

    def measure(self, x: Floats) -> Measurement:
        """Encrypt one raw input, evaluate it (this is timed) and decrypt the result."""
        ...


class Program(Protocol[T]):
    """One program in this process; its ciphertexts are its own."""

    def encrypt(self, x: Floats) -> T:
        """Encrypt one raw input."""
        ...

    def evaluate(self, encrypted: T) -> T:
        """Do what the server does: this is timed."""
        ...

    def decrypt(self, encrypted: T) -> Floats:
        """Return the outputs."""
        ...


class InProcess(Generic[T]):
    """Measures a program of this process."""

    def __init__(self, program: Program[T]) -> None:
        self._program = program

    def measure(self, x: Floats) -> Measurement:
        """Encrypt one raw input, evaluate it (this is timed) and decrypt the result."""
        encrypted = self._program.encrypt(x)
        wall, cpu = time.perf_counter(), time.process_time()
        result = self._program.evaluate(encrypted)
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        return Measurement(self._program.decrypt(result), wall=wall, cpu=cpu)
