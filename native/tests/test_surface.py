"""The library can evaluate and nothing else, and needs nothing of SEAL's."""

import re
import subprocess
import sys
from pathlib import Path

import tensorguard_moai_native

from support import moai

SOURCES = Path(__file__).parents[1] / "src"
LIBRARY = Path(tensorguard_moai_native._native.__file__)
FORBIDDEN = re.compile(
    r"secret|private|decrypt|encrypt|key_?gen|gen\w*_?key|gauss|ternary|noise_?s", re.IGNORECASE
)


def symbols(*options):
    out = subprocess.run(
        ["nm", "-D", *options, str(LIBRARY)], check=True, capture_output=True, text=True
    ).stdout
    return [line.split()[-1] for line in out.splitlines()]


def test_only_the_modules_entry_is_exported():
    assert symbols("--defined-only") == ["PyInit__native"]


def test_no_symbol_makes_or_uses_a_secret():
    assert symbols("--undefined-only")
    for symbol in symbols():
        assert not FORBIDDEN.search(symbol), symbol


def test_the_binary_draws_no_randomness():
    """Without randomness nothing can be encrypted and no key made."""
    for symbol in symbols("--undefined-only"):
        assert not re.search(r"getrandom|getentropy|random_device|arc4random|\brand\b", symbol)


def test_the_source_has_no_code_for_secrets():
    files = sorted(SOURCES.iterdir())
    assert len(files) > 15
    for file in files:
        for line in file.read_text().splitlines():
            code = line.split("//")[0]
            code = code.replace("private:", "")
            assert not FORBIDDEN.search(code), (file.name, line)
            assert "<random>" not in code


def test_the_public_names_are_operations_on_ciphertexts():
    for name in dir(tensorguard_moai_native._native):
        assert not FORBIDDEN.search(name), name


PROGRAM = """
import sys
from importlib.abc import MetaPathFinder

class NoTenSeal(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"tenseal", "_sealapi_cpp", "_tenseal_cpp"}:
            raise ImportError(name)

sys.meta_path.insert(0, NoTenSeal())
from pathlib import Path
from tensorguard.crypto.hybrid import HybridPublicKey
from tensorguard.crypto.trust import TrustStore
from tensorguard.moai import pack
from tensorguard.moai.backends.native import NativeBackend

folder = Path(sys.argv[1])
_, key = HybridPublicKey.from_json((folder / "trust").read_bytes())
verified = pack.verify(pack.read((folder / "pack").read_bytes(), limit=1 << 24),
                       TrustStore.from_keys({"tests": key}))
model = NativeBackend().load(verified)
keys = model.load_keys((folder / "keys").read_bytes())
(folder / "result").write_bytes(model.evaluate(keys, (folder / "input").read_bytes()))
assert "tenseal" not in sys.modules
"""


def test_a_pack_is_evaluated_in_a_process_without_tenseal(tmp_path):
    tiny = moai.tiny()
    (tmp_path / "trust").write_bytes(moai.signer().public_key.to_json(name="tests"))
    (tmp_path / "pack").write_bytes(tiny.data)
    (tmp_path / "keys").write_bytes(tiny.key_frame)
    (tmp_path / "input").write_bytes(tiny.client.encrypt(tiny.inputs[0]))
    subprocess.run([sys.executable, "-c", PROGRAM, str(tmp_path)], check=True, timeout=120)
    result = tiny.client.decrypt((tmp_path / "result").read_bytes())
    expected = tiny.model.spec.graph.apply(tiny.inputs[:1])[0]
    assert abs(result - expected).max() < 1e-6
