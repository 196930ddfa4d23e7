"""Real servers for the tests: one Postgres and one Redis per test process, one database per test or per module."""

import contextlib
import itertools
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
import redis as redis_package

from harness import Stack, stack
from jobledger import Connections, Settings, configure
from jobledger.connections.postgres import make_engine
from jobledger.embedded import EmbeddedServers
from jobledger.ledger.migrate import upgrade
from jobledger.observe.log import LineHandler, TailHandler

_numbers = itertools.count(1)

TEMPLATE = "template_jobledger"
TALLY = pytest.StashKey[str | None]()


# Generated examples: the same ones in every run, however busy the machine is. --hypothesis-profile thorough has more.
for profile, examples in (("quick", 50), ("thorough", 500)):
    hypothesis.settings.register_profile(profile, derandomize=True, deadline=None, database=None, max_examples=examples)
hypothesis.settings.load_profile("quick")  # the profile of the option is loaded later


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--clock-minutes", type=float, default=2.0, help="How long tests/chaos kills schedulers.")
    parser.addoption("--limited-jobs", type=int, default=160, help="Jobs with limits whose workers tests/chaos kills.")


def pytest_configure(config: pytest.Config) -> None:
    """No process of a test may add to the tally."""
    config.stash[TALLY] = os.environ.pop("TALLY", None)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Add how many passed and how many failed to the file that `TALLY` names, if it names any."""
    if path := config.stash[TALLY]:
        counts = {name: len(terminalreporter.getreports(name)) for name in ("passed", "failed", "error")}
        with Path(path).open("a") as file:
            file.write(f"{counts['passed']} {counts['failed'] + counts['error']} tests\n")


@pytest.fixture(scope="session", autouse=True)
def _own_environment() -> None:
    """No setting of whoever runs the tests may leak in."""
    for name in [name for name in os.environ if name.startswith(("JOBLEDGER_", "RQ_"))]:
        del os.environ[name]


@pytest.fixture(autouse=True)
def _own_logging() -> Iterator[None]:
    """A command that is called in this process sets its logs up; no test after it may see that."""
    root = logging.getLogger()
    level = root.level
    yield
    root.setLevel(level)
    for handler in [one for one in root.handlers if isinstance(one, LineHandler | TailHandler)]:
        root.removeHandler(handler)


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServers]:
    """This test process's own Postgres and Redis."""
    with EmbeddedServers(tmp_path_factory.mktemp("servers"), persistent=False) as running:
        running.postgres.create_database(TEMPLATE)
        engine = make_engine(running.postgres.url_for(TEMPLATE), "template")
        upgrade(engine)
        engine.dispose()
        yield running


@contextlib.contextmanager
def _migrated_database(servers: EmbeddedServers) -> Iterator[str]:
    name = f"test_{next(_numbers)}"
    servers.postgres.create_database(name, template=TEMPLATE)
    yield servers.postgres.url_for(name)
    servers.postgres.drop_database(name)


@pytest.fixture(scope="module")
def module_database_url(servers: EmbeddedServers) -> Iterator[str]:
    """The one migrated database of a module that says `pytestmark = pytest.mark.one_database`.

    Its tests look at jobs of their own, or empty the tables that they count.
    """
    with _migrated_database(servers) as url:
        yield url


@pytest.fixture
def database_url(request: pytest.FixtureRequest, servers: EmbeddedServers) -> Iterator[str]:
    """A migrated database: of this test's own, unless its module shares one."""
    if request.node.get_closest_marker("one_database"):
        yield request.getfixturevalue("module_database_url")
        return
    with _migrated_database(servers) as url:
        yield url


@pytest.fixture
def redis_url(servers: EmbeddedServers) -> str:
    """This test process's Redis, emptied."""
    with redis_package.Redis.from_url(servers.redis.url) as client:
        client.flushall()
    return servers.redis.url


@pytest.fixture
def environment(database_url: str, redis_url: str, tmp_path: Path) -> dict[str, str]:
    """What processes of ours need in their environment."""
    return {
        "JOBLEDGER_DATABASE_URL": database_url,
        "JOBLEDGER_REDIS_URL": redis_url,
        "JOBLEDGER_JOB_MODULES": "sample_jobs",
        "JOBLEDGER_DATA_DIR": str(tmp_path),
    }


@pytest.fixture
def settings(environment: dict[str, str]) -> Settings:
    """The same, as settings."""
    return Settings(**{name.removeprefix("JOBLEDGER_").lower(): value for name, value in environment.items()})


@pytest.fixture
def connections(settings: Settings) -> Iterator[Connections]:
    """The process's default connections, to this test's own servers."""
    made = configure(settings)
    yield made
    made.close()


@pytest.fixture
def system(environment: dict[str, str], tmp_path: Path) -> Iterator[Stack]:
    """Starts real workers, schedulers and APIs against this test's servers; stops them at the end."""
    with stack(environment, tmp_path) as running:
        yield running
