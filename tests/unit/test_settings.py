"""Settings: read from the environment, refused by the name of the variable."""

from pathlib import Path

import pytest
from pydantic import SecretStr

from jobledger import ConfigurationError, Settings
from jobledger.settings import load_settings


@pytest.fixture(autouse=True)
def _no_env_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_every_setting_but_the_urls_has_a_default() -> None:
    settings = load_settings()

    assert settings.queues == ("high", "default", "low", "etl")
    assert settings.lease_seconds == 30
    assert settings.database_url is None
    assert settings.redis_url is None


def test_the_environment_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOBLEDGER_LEASE_SECONDS", "5")
    monkeypatch.setenv("JOBLEDGER_QUEUES", "fast, slow ,,")
    monkeypatch.setenv("JOBLEDGER_TIMEZONE", "Europe/Prague")

    settings = load_settings()

    assert settings.lease_seconds == 5
    assert settings.queues == ("fast", "slow")
    assert str(settings.zone) == "Europe/Prague"


def test_a_file_decides_what_the_environment_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".env").write_text("JOBLEDGER_LEASE_SECONDS=5\nJOBLEDGER_SWEEP_SECONDS=7\nOTHER=1\n")
    monkeypatch.setenv("JOBLEDGER_SWEEP_SECONDS", "8")

    settings = load_settings()

    assert (settings.lease_seconds, settings.sweep_seconds) == (5, 8)


def test_what_is_said_in_code_decides_over_both(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOBLEDGER_LEASE_SECONDS", "5")

    assert load_settings(lease_seconds=9).lease_seconds == 9


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lease_seconds", "0.5"),
        ("lease_seconds", "soon"),
        ("sweep_seconds", "0"),
        ("relay_seconds", "61"),
        ("default_timeout_seconds", "0"),
        ("tick_grace_seconds", "0"),
        ("keep_completed_days", "0"),
        ("keep_failed_days", "-1"),
        ("timezone", "Mars/Olympus"),
        ("api_port", "70000"),
    ],
)
def test_a_value_that_makes_no_sense_is_refused_by_the_name_of_its_variable(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"JOBLEDGER_{name.upper()}", value)

    with pytest.raises(ConfigurationError, match=f"JOBLEDGER_{name.upper()}='{value}'"):
        load_settings()


def test_all_that_is_wrong_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOBLEDGER_LEASE_SECONDS", "0")
    monkeypatch.setenv("JOBLEDGER_API_PORT", "-1")

    with pytest.raises(ConfigurationError, match=r"JOBLEDGER_LEASE_SECONDS.*JOBLEDGER_API_PORT"):
        load_settings()


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg2"])
def test_every_usual_spelling_of_a_postgres_url_is_understood(scheme: str) -> None:
    settings = Settings(database_url=SecretStr(f"{scheme}://me:secret@host:5432/name"))

    assert settings.require_database_url() == "postgresql+psycopg2://me:secret@host:5432/name"


def test_a_missing_url_is_named() -> None:
    with pytest.raises(ConfigurationError, match="JOBLEDGER_DATABASE_URL is not set"):
        Settings().require_database_url()
    with pytest.raises(ConfigurationError, match="JOBLEDGER_REDIS_URL is not set"):
        Settings().require_redis_url()


def test_passwords_do_not_show() -> None:
    settings = Settings(
        database_url=SecretStr("postgresql://me:secret@host/name"), redis_url=SecretStr("redis://:secret@host")
    )

    assert "secret" not in f"{settings!r} {settings}"


def test_words_for_logs_are_read_in_any_case(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOBLEDGER_LOG_LEVEL", "warning")
    monkeypatch.setenv("JOBLEDGER_LOG_FORMAT", "JSON")

    settings = load_settings()

    assert (settings.log_level, settings.log_format) == ("WARNING", "json")


@pytest.mark.parametrize(
    ("name", "words"), [("LOG_LEVEL", "'DEBUG', 'INFO', 'WARNING' or 'ERROR'"), ("LOG_FORMAT", "'text' or 'json'")]
)
def test_a_wrong_word_for_logs_is_refused(name: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"JOBLEDGER_{name}", "loud")

    with pytest.raises(ConfigurationError, match=f"JOBLEDGER_{name}='LOUD|loud': Input should be {words}"):
        load_settings()
