"""Settings, from the environment (`JOBLEDGER_*`) or a `.env` file; made by the entry points, never at import."""

from functools import cache
from pathlib import Path
from typing import Annotated, Literal
from zoneinfo import ZoneInfo, available_timezones

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from jobledger.errors import ConfigurationError

Names = Annotated[tuple[str, ...], NoDecode]


class Settings(BaseSettings):
    """The settings. Every name below is an environment variable with the prefix `JOBLEDGER_`."""

    model_config = SettingsConfigDict(
        env_prefix="JOBLEDGER_", env_file=".env", env_file_encoding="utf-8", extra="ignore", frozen=True
    )

    database_url: SecretStr | None = Field(
        None, description="URL of Postgres, in SQLAlchemy's form: postgresql+psycopg2://user:password@host/name."
    )
    redis_url: SecretStr | None = Field(None, description="URL of Redis: redis://:password@host:6379/0.")
    job_modules: Names = Field((), description="Modules that define jobs and schedules, separated by commas.")
    queues: Names = Field(
        ("high", "default", "low", "etl"), description="Queues in the order in which workers look at them."
    )
    queue_prefix: str = Field(
        "",
        pattern=r"^[A-Za-z0-9_.:-]{0,50}$",
        description="Prefix of queue names in Redis, such as shop:, so that several ledgers can share a Redis.",
    )
    default_timeout_seconds: float = Field(600, gt=0, description="Timeout of attempts of jobs that set none.")
    lease_seconds: float = Field(
        30, ge=1, le=3600, description="Length of a lease: an attempt whose lease is not renewed for so long is lost."
    )
    sweep_seconds: float = Field(
        5, ge=0.2, le=60, description="Pause between two sweeps of the repair chores in a scheduler."
    )
    relay_seconds: float = Field(1, ge=0.1, le=60, description="Pause between two passes of the relay.")
    relay_rate: int = Field(50_000, ge=1, description="Most wake-ups that one scheduler pushes in a second.")
    tick_grace_seconds: float = Field(
        15, ge=1, le=86400, description="A fire time later than this is missed: its schedule's `catch_up` decides."
    )
    drain_seconds: float = Field(
        20, ge=0, le=3600, description="How long a running job may go on after its worker is asked to stop."
    )
    queue_window: int = Field(
        50_000, ge=1, description="About the most wake-ups of a queue in Redis; further jobs wait in Postgres."
    )
    keep_completed_days: float = Field(7, gt=0, description="Completed and canceled jobs are pruned after this.")
    keep_failed_days: float = Field(90, gt=0, description="Failed jobs are pruned after this.")
    keep_ticks_days: float = Field(400, gt=0, description="Fire times of schedules are remembered for this long.")
    keep_idempotency_keys_hours: float = Field(
        24, ge=24, description="Idempotency keys are remembered for this long, and until their job has ended."
    )
    timezone: str = Field("UTC", description="Time zone of schedules that name none.")
    data_dir: Path = Field(Path("data"), description="LoadCsv reads files below this directory only.")
    truncatable_tables: Names = Field(
        (), description="Tables that TruncateTable may empty: schema.table, separated by commas."
    )
    loadable_tables: Names = Field((), description="Tables that LoadCsv may load: schema.table, separated by commas.")
    api_host: str = Field("127.0.0.1", description="Address that the API listens on.")
    api_port: int = Field(8000, ge=0, le=65535, description="Port of the API.")
    dashboard_port: int = Field(9181, ge=0, le=65535, description="Port of rq-dashboard under `up`.")
    code_version: str = Field("", description="Version of your code; kept with each attempt.")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "INFO", description="Level of logs: DEBUG, INFO, WARNING or ERROR."
    )
    log_format: Literal["text", "json"] = Field(
        "text", description="Format of logs: text for people, or json, one object per line."
    )

    @field_validator("job_modules", "queues", "truncatable_tables", "loadable_tables", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @field_validator("log_level", mode="before")
    @classmethod
    def _in_capitals(cls, value: object) -> object:
        return value.strip().upper() if isinstance(value, str) else value

    @field_validator("log_format", mode="before")
    @classmethod
    def _in_small_letters(cls, value: object) -> object:
        return value.strip().lower() if isinstance(value, str) else value

    @field_validator("timezone")
    @classmethod
    def _known_zone(cls, value: str) -> str:
        if value not in zone_names():
            raise ValueError(f"{value!r} is no time zone of the IANA database, such as Europe/Prague")
        return value

    def as_environment(self) -> dict[str, str]:
        """The environment variables that give another process the same settings, secrets included."""
        said = {name: getattr(self, name) for name in type(self).model_fields}
        return {f"JOBLEDGER_{name.upper()}": _as_text(value) for name, value in said.items() if value is not None}

    def queue_in_redis(self, queue: str) -> str:
        """The name of a queue in Redis, the only name that RQ, its workers and its tools know."""
        return f"{self.queue_prefix}{queue}"

    @property
    def zone(self) -> ZoneInfo:
        """The default time zone of schedules."""
        return ZoneInfo(self.timezone)

    def require_database_url(self) -> str:
        """The URL of Postgres.

        Raises:
            ConfigurationError: it is not set.
        """
        if self.database_url is None:
            raise ConfigurationError(
                "JOBLEDGER_DATABASE_URL is not set; say postgresql+psycopg2://user:password@host/name "
                "(or run `python -m jobledger up`, which brings its own servers)."
            )
        url = self.database_url.get_secret_value()
        scheme, separator, rest = url.partition("://")
        return f"postgresql+psycopg2://{rest}" if separator and scheme in ("postgres", "postgresql") else url

    def require_redis_url(self) -> str:
        """The URL of Redis.

        Raises:
            ConfigurationError: it is not set.
        """
        if self.redis_url is None:
            raise ConfigurationError("JOBLEDGER_REDIS_URL is not set; say redis://:password@host:6379/0.")
        return self.redis_url.get_secret_value()


def _as_text(value: object) -> str:
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    return ",".join(value) if isinstance(value, tuple) else str(value)


@cache
def zone_names() -> frozenset[str]:
    """The time zones that mean the same on every machine; `localtime` and `Factory` depend on its configuration."""
    return frozenset(available_timezones()) - {"localtime", "Factory"}  # slow: it walks through directories


def load_settings(**overrides: object) -> Settings:
    """Read the settings from the environment, with overrides.

    Raises:
        ConfigurationError: a value is wrong; the message names each.
    """
    try:
        return Settings(**overrides)  # type: ignore[arg-type]
    except ValidationError as error:
        problems = "; ".join(
            f"JOBLEDGER_{str(item['loc'][0]).upper()}={item['input']!r}: {item['msg']}"
            for item in error.errors(include_url=False)
        )
        raise ConfigurationError(f"Settings: {problems}") from None
