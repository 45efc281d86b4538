import pytest
from typer.testing import CliRunner

from tensorguard.cli.bench import app
from tensorguard.errors import TensorGuardError


def bench(*arguments):
    return CliRunner().invoke(app, ["inference", "--quick", *arguments])


@pytest.mark.parametrize("option", ["orion", "orion=", "=python"])
def test_a_peer_without_name_or_interpreter_is_refused(option):
    result = bench("--peer", option, "--case", "matvec-256")
    assert result.exit_code != 0
    assert not result.stdout


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(("--case", "matvec-257"), "bench_case"), (("--peer", "oreon=/bin/python"), "bench_peer")],
)
def test_an_unknown_case_or_peer_is_refused_before_anything_is_measured(arguments, code):
    result = bench(*arguments)
    assert isinstance(result.exception, TensorGuardError)
    assert result.exception.code == code
    assert not result.stdout
