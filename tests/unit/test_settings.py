"""Settings: unset means production, secrets never print, faults are collected."""

from __future__ import annotations

import dataclasses

import pytest

from tensorguard.settings import Environment, Settings, variables


def test_unset_environment_means_production() -> None:
    assert Settings.from_environment({}).production


@pytest.mark.parametrize("word", ["prod", "Production", "production ", "dev", "test", "true"])
@pytest.mark.invariant("TG-I01")
def test_any_other_word_is_recorded_and_stays_production(word: str) -> None:
    settings = Settings.from_environment({"TG_ENVIRONMENT": word})
    assert settings.production
    assert "TG_ENVIRONMENT" in settings.malformed


@pytest.mark.parametrize("word", list(Environment))
def test_known_words_are_taken(word: Environment) -> None:
    assert Settings.from_environment({"TG_ENVIRONMENT": word}).environment is word


def test_secrets_do_not_print() -> None:
    raw = "ab" * 32
    settings = Settings.from_environment(
        {
            "TG_SECRET_KEY": raw,
            "TG_KEY_MASTER": raw,
            "DATABASE_URL": "postgresql+psycopg://u:hunter2@h/d",
        }
    )
    shown = repr(settings) + str(settings)
    assert "hunter2" not in shown
    assert raw not in shown
    assert repr(bytes.fromhex(raw))[2:-1] not in shown


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("TG_SECRET_KEY", "not hex, not base64!"),
        ("TG_MAX_BODY_BYTES", "0"),
        ("TG_MAX_BODY_BYTES", "-5"),
        ("TG_MAX_BODY_BYTES", "1e6"),
        ("TG_MAX_BODY_BYTES", "٣"),
        ("TG_BEHIND_TLS_PROXY", "yes"),
        ("TG_PUBLIC_URL", "ftp://x"),
        ("TG_ALLOWED_ORIGINS", "https://a/path"),
        ("TG_HOME", "a\0b"),
    ],
)
def test_malformed_values_are_recorded_never_raised(variable: str, value: str) -> None:
    assert Settings.from_environment({variable: value}).malformed.keys() == {variable}


def test_both_secret_encodings_give_the_same_bytes() -> None:
    hexed = Settings.from_environment({"TG_SECRET_KEY": "00ff" * 16}).secret_key
    based = Settings.from_environment({"TG_SECRET_KEY": "AP8A_wD_" * 5 + "AP8"}).secret_key
    assert hexed is not None
    assert based is not None
    assert hexed.get_secret_value()[:30] == based.get_secret_value()[:30]


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Settings.from_environment({}).environment = Environment.research  # type: ignore[misc]


def test_each_variable_is_declared_once() -> None:
    names = [variable.name for variable in variables()]
    assert len(names) == len(set(names))
    assert {"TG_ENVIRONMENT", "TG_SECRET_KEY", "DATABASE_URL", "TG_HOME"} <= set(names)
