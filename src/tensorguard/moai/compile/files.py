"""Model and calibration files are data: nothing in them is ever executed.

`.skops` files are read with an explicit list of types; pickles (`.pkl`, `.joblib`) run code when
they are opened and are refused.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tensorguard.crypto.files import read_bounded
from tensorguard.errors import MalformedInput
from tensorguard.moai.compile import from_onnx, from_sklearn, from_torch
from tensorguard.moai.compile.from_safetensors import (
    MAX_DESCRIPTION,
    MAX_WEIGHTS,
    network_of,
    read_description,
)
from tensorguard.moai.compile.network import ModelNotSupported, Network
from tensorguard.moai.compile.onnx_file import MAX_ONNX
from tensorguard.moai.compile.torch_file import MAX_TORCH

Floats = npt.NDArray[np.float64]
MAX_MODEL = 256 << 20
MAX_CALIBRATION = 256 << 20
MAX_CALIBRATION_VALUES = 32 << 20

# What the supported estimators hold beyond what skops trusts by itself.
TRUSTED_TYPES = (
    "sklearn.linear_model._base.LinearRegression",
    "sklearn.linear_model._coordinate_descent.ElasticNet",
    "sklearn.linear_model._coordinate_descent.Lasso",
    "sklearn.linear_model._logistic.LogisticRegression",
    "sklearn.linear_model._perceptron.Perceptron",
    "sklearn.linear_model._ridge.Ridge",
    "sklearn.linear_model._ridge.RidgeClassifier",
    "sklearn.linear_model._stochastic_gradient.SGDClassifier",
    "sklearn.linear_model._stochastic_gradient.SGDRegressor",
    "sklearn.svm._classes.LinearSVC",
    "sklearn.svm._classes.LinearSVR",
    "sklearn.decomposition._pca.PCA",
    "sklearn.neural_network._multilayer_perceptron.MLPClassifier",
    "sklearn.neural_network._multilayer_perceptron.MLPRegressor",
    "sklearn.neural_network._stochastic_optimizers.AdamOptimizer",
    "sklearn.neural_network._stochastic_optimizers.SGDOptimizer",
    "sklearn.preprocessing._data.MaxAbsScaler",
    "sklearn.preprocessing._data.MinMaxScaler",
    "sklearn.preprocessing._data.StandardScaler",
    "sklearn.preprocessing._label.LabelBinarizer",
    "sklearn.pipeline.Pipeline",
    "sklearn.compose._target.TransformedTargetRegressor",
)


class PickleRefused(MalformedInput):
    code = "pickle_refused"
    remedy = "Save the estimator as skops: skops.io.dump(estimator, 'model.skops')."


class TorchPickleRefused(MalformedInput):
    code = "torch_pickle_refused"
    remedy = (
        "Export the module: program = torch.export.export(module.eval(), (example,)); "
        "torch.export.save(program, 'model.pt2'). Or export it to ONNX, or save its state_dict with "
        "safetensors.torch.save_file and describe it with --layers."
    )


class CalibrationUnusable(MalformedInput):
    code = "calibration_unusable"
    remedy = "Save rows of features with numpy.save: one float array of shape (rows, features)."


def read_model(path: Path, *, layers: Path | None = None, labels: Sequence[str] = ()) -> Network:
    """Return the network in a `.skops`, `.onnx`, `.pt2` or (described) `.safetensors` file.

    `labels` name the classes of an ONNX or PyTorch model, which has no place for them.
    """
    suffix = path.suffix.lower()
    if suffix in {".pkl", ".pickle", ".joblib"}:
        raise PickleRefused(f"{path.name} is a pickle, which runs code when it is opened")
    if suffix in {".pt", ".pth", ".ckpt", ".bin"}:
        raise TorchPickleRefused(f"{path.name} is a pickle, which runs code when it is opened")
    if suffix not in {".skops", ".onnx", ".pt2", ".safetensors"}:
        raise ModelNotSupported(f"{path.name} is not a .skops, .onnx, .pt2 or .safetensors file")
    if (layers is not None) != (suffix == ".safetensors"):
        raise ModelNotSupported("--layers describes a .safetensors file, and only that")
    if labels and suffix not in {".onnx", ".pt2"}:
        raise ModelNotSupported("--label is for .onnx and .pt2 files; others name their classes")
    if suffix == ".pt2":
        return from_torch.network_of(read_bounded(path, limit=MAX_TORCH), labels=labels)
    if suffix == ".onnx":
        return from_onnx.network_of(read_bounded(path, limit=MAX_ONNX), labels=labels)
    if layers is not None:
        description = read_description(read_bounded(layers, limit=MAX_DESCRIPTION))
        return network_of(read_bounded(path, limit=MAX_WEIGHTS), description)
    data = read_bounded(path, limit=MAX_MODEL)
    digest = hashlib.sha256(data).hexdigest()
    return from_sklearn.network_of(_load_skops(data), source_sha256=digest)


def read_calibration(path: Path) -> Floats:
    """Return rows of raw inputs from a `.npy`, or from a `.npz` with one array."""
    data = read_bounded(path, limit=MAX_CALIBRATION)
    try:
        _check_expansion(data)
        loaded = np.load(io.BytesIO(data), allow_pickle=False)
        if isinstance(loaded, np.lib.npyio.NpzFile):
            if len(loaded.files) != 1:
                raise CalibrationUnusable("an .npz file has exactly one array")
            loaded = loaded[loaded.files[0]]
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile, MemoryError) as error:
        raise CalibrationUnusable(f"{path.name} is not a numpy array file") from error
    if loaded.ndim != 2 or loaded.size == 0 or loaded.dtype.kind not in "fiu":  # noqa: PLR2004 -- rows by features
        raise CalibrationUnusable("calibration data are one array of (rows, features) numbers")
    if loaded.size > MAX_CALIBRATION_VALUES:
        raise CalibrationUnusable(f"calibration data have at most {MAX_CALIBRATION_VALUES} numbers")
    return np.asarray(loaded, dtype=np.float64)


def _check_expansion(data: bytes) -> None:
    """Refuse an archive that would unpack to more than we take."""
    if data[:2] != b"PK":
        return
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        if sum(entry.file_size for entry in archive.infolist()) > MAX_CALIBRATION:
            raise CalibrationUnusable(f"the archive unpacks to over {MAX_CALIBRATION} bytes")


def _load_skops(data: bytes) -> Any:
    try:
        from skops import io as skops
        from skops.io.exceptions import UntrustedTypesFoundException
    except ImportError as error:
        raise from_sklearn.SklearnMissing("skops is not installed") from error
    try:
        unknown = set(skops.get_untrusted_types(data=data)) - set(TRUSTED_TYPES)
        if unknown:
            raise ModelNotSupported(f"the file holds types we do not trust: {sorted(unknown)[:5]}")
        return skops.loads(data, trusted=list(TRUSTED_TYPES))
    except UntrustedTypesFoundException as error:
        raise ModelNotSupported("the file holds types we do not trust") from error
    except (zipfile.BadZipFile, KeyError, ValueError, TypeError, AttributeError) as error:
        raise MalformedInput("this is not a skops file") from error
