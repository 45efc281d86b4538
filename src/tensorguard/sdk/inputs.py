"""Inputs and outputs as files: rows of numbers as `.npy`, `.json` or `.csv`; nothing in a file is executed."""

from __future__ import annotations

import io
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from tensorguard.crypto.files import read_bounded, write_atomic
from tensorguard.errors import MalformedInput

MAX_INPUT = 64 << 20  # bytes of one file
Floats = npt.NDArray[np.float64]


class InputUnusable(MalformedInput):
    code = "input_unusable"
    remedy = "Give numbers as .npy (1 or 2 dimensions), .json (a list, or lists) or .csv (rows)."


def read_rows(path: Path) -> Floats:
    """Return rows (n, features) of finite numbers. A single vector is one row."""
    data = read_bounded(path, limit=MAX_INPUT)
    try:
        match path.suffix.lower():
            case ".npy":
                rows = np.load(io.BytesIO(data), allow_pickle=False)
            case ".json":
                rows = np.array(msgspec.json.decode(data, type=list[float | list[float]]))
            case ".csv":
                rows = np.loadtxt(io.BytesIO(data), delimiter=",", ndmin=2)
            case other:
                raise InputUnusable(f"{other or 'no suffix'} is no kind of input")
    except (ValueError, OSError, EOFError, msgspec.DecodeError) as error:
        raise InputUnusable(f"{path.name} does not hold rows of numbers") from error
    if rows.dtype.kind not in "fiu" or rows.ndim not in {1, 2} or rows.size == 0:
        raise InputUnusable(f"{path.name} does not hold rows of numbers")
    rows = np.atleast_2d(np.asarray(rows, dtype=np.float64))
    if not np.isfinite(rows).all():
        raise InputUnusable(f"{path.name} holds a number that is not finite")
    return rows


def write_rows(path: Path, rows: Floats) -> None:
    """Write rows (n, outputs), mode 0600: they are what was worth encrypting."""
    buffer = io.BytesIO()
    match path.suffix.lower():
        case ".npy":
            np.save(buffer, rows, allow_pickle=False)
        case ".json":
            buffer.write(msgspec.json.encode(rows.tolist()))
        case ".csv":
            np.savetxt(buffer, rows, delimiter=",", fmt="%.17g")
        case other:
            raise InputUnusable(f"{other or 'no suffix'} is no kind of output")
    write_atomic(path, buffer.getvalue())
