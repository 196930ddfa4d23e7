"""docker-compose.yml: what it promises of each service, and its services as processes of this machine."""

import contextlib
import json
import re
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
import redis as redis_package
import sqlalchemy as sa
import yaml

from harness import REPOSITORY, Process, Stack, eventually, stack
from jobledger import Settings
from jobledger.embedded import EmbeddedServers, find_redis_server, free_port

Service = dict[str, Any]

RAW: Final = yaml.safe_load((REPOSITORY / "docker-compose.yml").read_text())
EXAMPLE: Final = (REPOSITORY / ".env.example").read_text()
SECRETS: Final = ("POSTGRES_PASSWORD", "REDIS_PASSWORD", "RQ_DASHBOARD_PASSWORD")
SERVERS: Final = ("postgres", "redis")
OURS: Final = ("migrate", "api", "worker", "scheduler", "rq-dashboard")
DRAIN_SECONDS: Final = Settings.model_fields["drain_seconds"].default


class Missing(Exception):
    """What Compose says of `${NAME:?…}` when there is no such value."""


def interpolated(value: Any, environment: dict[str, str]) -> Any:
    """What Compose makes of the `${…}` in a part of its file: `:?` demands, `:-` has a default; empty is missing."""
    if isinstance(value, dict):
        return {key: interpolated(one, environment) for key, one in value.items()}
    if isinstance(value, list):
        return [interpolated(one, environment) for one in value]
    if not isinstance(value, str):
        return value

    def replaced(found: re.Match[str]) -> str:
        name, operator, word = found.groups()
        if given := environment.get(name):
            return given
        if operator != ":-":
            raise Missing(word or name)
        return str(word)

    return re.sub(r"\$\{(\w+)(:[?-])?([^}]*)\}", replaced, value)


def given(text: str) -> dict[str, str]:
    """The variables that a .env file sets."""
    return dict(re.findall(r"^(\w+)=(.*)$", text, re.MULTILINE))


def seconds(duration: str) -> float:
    number, unit = re.fullmatch(r"(\d+)([sm])", duration).groups()  # type: ignore[union-attr]
    return float(number) * {"s": 1, "m": 60}[unit]


ENVIRONMENT: Final = {**given(EXAMPLE), **{name: f"{name.lower()}-for-tests" for name in SECRETS}}
COMPOSE: Final = interpolated(RAW, ENVIRONMENT)
SERVICES: Final[dict[str, Service]] = COMPOSE["services"]

OF_ALL: Final[dict[str, Callable[[Service], bool]]] = {
    "its file system is read-only": lambda one: one["read_only"] is True and "/tmp" in one["tmpfs"],
    "it is not root": lambda one: one["user"].partition(":")[0] not in ("", "0", "root"),
    "it has no capabilities": lambda one: one["cap_drop"] == ["ALL"] and "cap_add" not in one,
    "it gains no privileges": lambda one: one["security_opt"] == ["no-new-privileges:true"],
    "its command is in exec form": lambda one: all(isinstance(word, str) for word in one["command"]),
    "it has longer than its drain": lambda one: seconds(one["stop_grace_period"]) > DRAIN_SECONDS + 12,
    "its log does not fill the disk": lambda one: {"max-size", "max-file"} <= one["logging"]["options"].keys(),
    "its image is one version": lambda one: re.search(r":(\d+\.\d+[.-]|local$)", one["image"]) is not None,
    "its volumes of the host are read-only": lambda one: all(
        volume.endswith(":ro") for volume in one.get("volumes", []) if volume.startswith(("/", "."))
    ),
}
OF_WHAT_STAYS: Final[dict[str, Callable[[Service], bool]]] = {
    "it is started again": lambda one: one["restart"] == "always",
    "its health is checked, in exec form": lambda one: one["healthcheck"]["test"][0] == "CMD",
    "its check has its times": lambda one: (
        {"interval", "timeout", "start_period", "retries"} <= one["healthcheck"].keys()
    ),
}
OF_SERVERS: Final[dict[str, Callable[[Service], bool]]] = {
    "it publishes no port": lambda one: "ports" not in one,
    "nothing outside reaches it": lambda one: one["networks"] == ["backend"],
    "its data stays": lambda one: any(volume.partition(":")[0] in COMPOSE["volumes"] for volume in one["volumes"]),
}
OF_OURS: Final[dict[str, Callable[[Service], bool]]] = {
    "somebody forwards signals and reaps": lambda one: one["init"] is True,
    "no secret is in its command": lambda one: "-for-tests" not in json.dumps(one["command"]),
    "any number of it may run": lambda one: "container_name" not in one and "hostname" not in one,
    "it is published on this machine alone": lambda one: all(
        port.startswith("127.0.0.1:") for port in one.get("ports", [])
    ),
}


@pytest.mark.parametrize("name", SERVICES)
def test_each_service_keeps_the_promises(name: str) -> None:
    promises = dict(OF_ALL)
    promises |= OF_WHAT_STAYS if name != "migrate" else {}
    promises |= OF_SERVERS if name in SERVERS else OF_OURS

    assert [promise for promise, is_kept in promises.items() if not is_kept(SERVICES[name])] == []


def test_the_services_are_those_that_the_promises_are_about() -> None:
    assert set(SERVICES) == {*SERVERS, *OURS}
    assert COMPOSE["networks"]["backend"] == {"internal": True}
    assert {name for name, one in SERVICES.items() if "ports" in one} == {"api", "rq-dashboard"}
    assert {name: one["image"] for name, one in SERVICES.items() if "build" in one} == {
        "api": SERVICES["worker"]["image"],
        "scheduler": "jobledger-scheduler:local",
    }


def test_the_schema_comes_once_and_first() -> None:
    first = {name for name, one in SERVICES.items() if "migrate" in one.get("depends_on", {})}

    assert SERVICES["migrate"]["restart"] == "no"
    assert SERVICES["migrate"]["depends_on"] == {"postgres": {"condition": "service_healthy"}}
    assert first == {"api", "worker", "scheduler"}
    assert {SERVICES[name]["depends_on"]["migrate"]["condition"] for name in first} == {
        "service_completed_successfully"
    }


@pytest.mark.parametrize("secret", SECRETS)
def test_a_secret_has_no_default(secret: str) -> None:
    for value in ({}, {secret: ""}):
        without = {name: one for name, one in ENVIRONMENT.items() if name != secret}
        with pytest.raises(Missing, match=f"set {secret} in .env"):
            interpolated(RAW, without | value)


def test_the_example_of_an_environment_names_all_and_gives_away_nothing() -> None:
    asked = set(re.findall(r"\$\{(\w+)", json.dumps(RAW)))
    passed_on = {name for name, value in RAW["x-environment"].items() if value is None}
    commented = given(re.sub(r"^#(?=\w+=)", "", EXAMPLE, flags=re.MULTILINE))
    defaults = dict(re.findall(r"\$\{(\w+):-([^}]*)\}", json.dumps(RAW)))

    assert set(commented) == asked | passed_on
    assert {name for name, value in given(EXAMPLE).items() if not value} == set(SECRETS)
    assert {name: commented[name] for name in defaults} == defaults
    assert "openssl rand -hex 32" in EXAMPLE


def test_every_setting_reaches_the_containers_and_its_default_is_told_right() -> None:
    of_the_image = {"API_HOST", "API_PORT", "DASHBOARD_PORT"}  # in a container, these are the command's
    settings = {f"JOBLEDGER_{name.upper()}" for name in Settings.model_fields if name.upper() not in of_the_image}
    told = given("".join(re.findall(r"^#(JOBLEDGER_\w+=.*\n)", EXAMPLE, re.MULTILINE)))
    told = {name: value for name, value in told.items() if RAW["x-environment"].get(name, "") is None}

    assert settings <= RAW["x-environment"].keys()
    for name, value in told.items():
        field = name.removeprefix("JOBLEDGER_").lower()
        assert getattr(Settings.model_validate({field: value}), field) == Settings.model_fields[field].default, name


class Deployment:
    """The file's services as processes here: its commands, its environments and its checks, but other addresses.

    Args:
        running: starts the processes.
        postgres: the URL of an empty database.
    """

    def __init__(self, running: Stack, postgres: str) -> None:
        self.ports = {name: free_port() for name in ("redis", "api", "rq-dashboard")}
        self.database_url = postgres
        self.redis_password = ENVIRONMENT["REDIS_PASSWORD"]
        self._running = running
        url = sa.make_url(postgres)
        services = interpolated(RAW, {**ENVIRONMENT, "POSTGRES_PASSWORD": str(url.password)})["services"]
        places = {
            "@postgres:5432/jobledger": f"@{url.host}:{url.port}/{url.database}",
            "@redis:6379/": f"@127.0.0.1:{self.ports['redis']}/",
            "0.0.0.0": "127.0.0.1",
            '"127.0.0.1", 9181': f'"127.0.0.1", {self.ports["rq-dashboard"]}',
        }
        self._services = {name: self._here(one, places) for name, one in services.items()}

    def _here(self, service: Service, places: dict[str, str]) -> Service:
        text = json.dumps(service)
        for there, here in places.items():
            text = text.replace(json.dumps(there)[1:-1], json.dumps(here)[1:-1])
        return json.loads(text)  # type: ignore[no-any-return]

    def start_redis(self, data: Path) -> Process:
        words = [str(data) if word == "/data" else word for word in self._services["redis"]["command"]]
        port = str(self.ports["redis"])
        return self._running.start(str(find_redis_server()), *words, "--bind", "127.0.0.1", "--port", port)

    def start(self, name: str) -> Process:
        return self.run(name, self._services[name]["command"])

    def run(self, name: str, command: list[str]) -> Process:
        """A command as in a container of this service."""
        words = [sys.executable if word == "python" else word for word in command]
        return self._running.start(*words, **self._environment(name))

    def is_healthy(self, name: str) -> bool:
        check = self._services[name]["healthcheck"]
        keyword, *command = check["test"]
        assert keyword == "CMD"
        return self.run(name, command).wait(seconds(check["timeout"]) * 3) == 0

    def grace(self, name: str) -> float:
        return seconds(self._services[name]["stop_grace_period"])

    def _environment(self, name: str) -> dict[str, str]:
        service = self._services[name]
        mounted = {target: source for source, target, _ in (one.split(":") for one in service["volumes"])}
        resolved = {
            key: ENVIRONMENT.get(key) if value is None else value for key, value in service["environment"].items()
        }
        environment = {
            key: str(REPOSITORY / mounted[value]) if value in mounted else value
            for key, value in resolved.items()
            if value is not None
        }
        return {
            **environment,
            "PYTHONPATH": str(REPOSITORY / mounted.get("/app", "nothing")),
            "JOBLEDGER_API_PORT": str(self.ports["api"]),
            "RQ_DASHBOARD_PORT": str(self.ports["rq-dashboard"]),
        }


@pytest.fixture
def deployment(servers: EmbeddedServers, tmp_path: Path) -> Iterator[Deployment]:
    """An empty database, and all else still to be started."""
    servers.postgres.create_database("composed")
    with stack({}, tmp_path) as running:
        yield Deployment(running, servers.postgres.url_for("composed"))
    servers.postgres.drop_database("composed")


def answers(client: redis_package.Redis) -> bool:
    with contextlib.suppress(redis_package.RedisError):
        return bool(client.ping())
    return False


def test_redis_forgets_nothing_and_its_password_is_not_in_the_process_list(
    deployment: Deployment, tmp_path: Path
) -> None:
    process = deployment.start_redis(tmp_path)
    with redis_package.Redis(port=deployment.ports["redis"], password=deployment.redis_password) as client:
        assert eventually(lambda: answers(client))
        wanted = {"appendonly": "yes", "appendfsync": "everysec", "save": "", "maxmemory-policy": "noeviction"}
        assert {name: client.config_get(name)[name] for name in wanted} == wanted
    with redis_package.Redis(port=deployment.ports["redis"]) as stranger, pytest.raises(redis_package.RedisError):
        stranger.ping()

    assert b"redis-server" in Path(f"/proc/{process.pid}/cmdline").read_bytes()
    assert deployment.redis_password.encode() not in Path(f"/proc/{process.pid}/cmdline").read_bytes()
    process.stop()


def test_the_stack_comes_up_finishes_a_job_and_ends_in_time(deployment: Deployment, tmp_path: Path) -> None:
    engine = sa.create_engine(deployment.database_url)
    with engine.begin() as connection:
        connection.execute(sa.text("CREATE SCHEMA staging"))
        connection.execute(sa.text("CREATE TABLE staging.airlines (carrier text PRIMARY KEY, name text NOT NULL)"))
    engine.dispose()
    redis = deployment.start_redis(tmp_path)
    migrated = deployment.start("migrate")
    assert migrated.wait(60) == 0, migrated.output()
    names = ["api", "scheduler", "rq-dashboard", "worker", "worker", "worker"]
    processes = [(name, deployment.start(name)) for name in names]
    with redis_package.Redis(port=deployment.ports["redis"], password=deployment.redis_password) as client:
        eventually(lambda: client.scard("rq:workers") == 3, 60, "three workers of different names")
    for name in dict.fromkeys(names):
        eventually(lambda name=name: deployment.is_healthy(name), 60, f"the health of {name}")

    api = f"http://127.0.0.1:{deployment.ports['api']}"
    load = {"path": "airlines.csv.gz", "table": "staging.airlines", "key": ["carrier"]}
    created = httpx.post(f"{api}/create-jobs", json={"job": "LoadCsv", "payload": load})
    assert created.status_code == 201, created.text
    job = api + created.headers["Location"]
    eventually(lambda: httpx.get(job).json()["status"] == "completed", 60, "the end of the job")

    dashboard = f"http://127.0.0.1:{deployment.ports['rq-dashboard']}/"
    logins = [None, ("jobledger", "wrong"), ("jobledger", ENVIRONMENT["RQ_DASHBOARD_PASSWORD"])]
    assert [httpx.get(dashboard, auth=login).status_code for login in logins] == [401, 401, 200]

    for _, process in processes:
        process.popen.terminate()
    codes = {(name, process.wait(deployment.grace(name))) for name, process in processes}
    assert codes == {("api", 0), ("scheduler", 0), ("worker", 0), ("rq-dashboard", -signal.SIGTERM)}
    redis.popen.terminate()
    assert redis.wait(deployment.grace("redis")) == 0
