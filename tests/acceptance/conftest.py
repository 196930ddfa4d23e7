"""What some of the whole-process tests share."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from jobledger import Connections, Settings, configure
from jobledger.connections.postgres import make_engine
from jobledger.embedded import EmbeddedServers
from jobledger.ledger.migrate import upgrade
from sample_jobs import EFFECTS


@pytest.fixture
def own(tmp_path: Path, database_url: str) -> Iterator[tuple[EmbeddedServers, Connections]]:
    """Servers that a test may stop."""
    with EmbeddedServers(tmp_path / "own", persistent=False) as servers:
        engine = make_engine(servers.database_url, "template")
        upgrade(engine)
        engine.dispose()
        made = configure(Settings(database_url=servers.database_url, redis_url=servers.redis_url))
        with made.transaction() as connection:
            connection.execute(sa.text(EFFECTS))
        yield servers, made
        made.close()
