"""From a trained network to a signed model pack."""

from tensorguard.moai.compile.build import Compiled, OverErrorBudget, build_pack, compile_network
from tensorguard.moai.compile.choose import compile_for_batches
from tensorguard.moai.compile.files import read_calibration, read_model
from tensorguard.moai.compile.from_onnx import from_onnx
from tensorguard.moai.compile.from_safetensors import from_safetensors
from tensorguard.moai.compile.from_sklearn import from_sklearn
from tensorguard.moai.compile.from_torch import from_torch
from tensorguard.moai.compile.html_report import report_compiled, report_pack
from tensorguard.moai.compile.network import Network
from tensorguard.moai.compile.predict import predict_pack

__all__ = [
    "Compiled",
    "Network",
    "OverErrorBudget",
    "build_pack",
    "compile_for_batches",
    "compile_network",
    "from_onnx",
    "from_safetensors",
    "from_sklearn",
    "from_torch",
    "predict_pack",
    "read_calibration",
    "read_model",
    "report_compiled",
    "report_pack",
]
