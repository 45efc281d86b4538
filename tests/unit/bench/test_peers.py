"""A peer is a process that answers lines; what it does wrong is named, never waited for."""

import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tensorguard.bench import heads, inference, peers
from tensorguard.bench.ours import Signed
from tensorguard.bench.peers import Peer, PeerFailed, PeerRow, PeerUnknown

PYTHON = Path(sys.executable)
HONEST = """
    import numpy

    DISTRIBUTIONS = ("numpy",)

    class Peer:
        def __init__(self, message):
            print("what a library prints is no answer")
            self.layers = message["layers"]
            assert message["ring"]["degree"] == 8192
            assert len(message["rows"]) == 256

        def infer(self, values):
            for layer in self.layers:
                values = numpy.array(layer["weight"]) @ values + layer["bias"]
            return {"output": (values + 1e-9).tolist(), "wall": 0.25, "cpu": 0.125}
"""


@pytest.fixture(scope="module")
def head():
    return heads.matvec(4, seed=1)


@pytest.fixture(scope="module")
def parameters(head):
    return Signed.of(head).pack.spec.parameters


@pytest.fixture
def table(tmp_path, monkeypatch):
    """Return a function that puts a script into the table of peers, under the name `mine`."""

    def put(text, **options):
        script = tmp_path / "mine.py"
        script.write_text(textwrap.dedent(text))
        row = PeerRow(str(script), "numpy", lambda _: "", **options)
        monkeypatch.setattr(peers, "PEERS", {"mine": row})
        monkeypatch.setattr(inference, "PEERS", {"mine": row})

    return put


def test_a_peer_gets_the_same_weights_and_inputs_and_times_itself(table, head, parameters):
    table(HONEST)
    peer = Peer.open("mine", PYTHON, head, parameters)
    try:
        assert peer.versions == {"numpy": np.__version__}
        measured = peer.measure(head.inputs[0])
    finally:
        peer.close()
    np.testing.assert_allclose(measured.outputs, head.network.raw(head.inputs[:1])[0], atol=1e-8)
    assert (measured.wall, measured.cpu) == (0.25, 0.125)


@pytest.mark.invariant("TG-I87")
def test_a_peer_takes_its_turn_and_is_named_when_it_cannot(table):
    table(HONEST)
    cases = {"matvec-4": lambda seed: heads.matvec(4, seed=seed)}
    found = inference.run(quick=True, progress=lambda _: None, cases=cases, peers={"mine": PYTHON})
    rows = {row.metric: row for row in found.results if row.variant == "mine"}
    assert rows["cpu"].median == 125
    assert rows["error"].median == pytest.approx(1e-9)
    table(HONEST, slow=True)
    slow = inference.run(quick=True, progress=lambda _: None, cases=cases, peers={"mine": PYTHON})
    assert "matvec-4 mine: it takes too long for --quick" in slow.missing
    assert not [row for row in slow.results if row.variant == "mine"]


@pytest.mark.invariant("TG-I87")
@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("import absent_library", "ModuleNotFoundError"),
        ("raise SystemExit(3)", "ended"),
        (HONEST.replace("numpy.array(", "numpy.absent("), "AttributeError"),
        (HONEST.replace("import numpy\n", "import numpy, time\n    time.sleep(9)\n"), "in time"),
    ],
    ids=["not installed", "exits", "raises", "hangs"],
)
def test_a_peer_that_fails_is_named_with_the_reason(
    table, head, parameters, monkeypatch, script, reason
):
    table(script)
    monkeypatch.setattr(peers, "SETUP_SECONDS", 3.0)
    with pytest.raises(PeerFailed, match=reason):  # noqa: PT012 -- at the start or at the first input
        peer = Peer.open("mine", PYTHON, head, parameters)
        try:
            peer.measure(head.inputs[0])
        finally:
            peer.close()


def test_an_interpreter_that_is_not_there_is_named(head, parameters):
    with pytest.raises(PeerFailed, match="cannot be run"):
        Peer.open("orion", Path("/nowhere/python"), head, parameters)


def test_a_peer_that_is_not_installed_is_missing_and_an_unknown_one_refused():
    found, missing = peers.interpreters({})
    assert set(found) | {line.partition(":")[0] for line in missing} == set(peers.PEERS)
    found, _ = peers.interpreters({"orion": Path("/some/python")})
    assert found["orion"] == Path("/some/python")
    with pytest.raises(PeerUnknown):
        peers.interpreters({"oreon": PYTHON})


def test_peers_refuse_what_they_have_no_packing_for():
    digits = heads.digits(seed=1)
    batch = replace(digits, batch=64)
    assert peers.PEERS["orion"].refuses(batch)
    assert not peers.PEERS["orion"].refuses(digits)
    assert peers.PEERS["concrete-ml"].refuses(batch)
    assert peers.PEERS["concrete-ml"].refuses(heads.matvec(256, seed=1))
    assert not peers.PEERS["concrete-ml"].refuses(digits)


def test_the_scripts_of_all_peers_are_in_the_package():
    folder = Path(peers.__file__).parent
    assert all((folder / row.script).is_file() for row in peers.PEERS.values())
