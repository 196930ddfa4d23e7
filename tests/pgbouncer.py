"""A real PgBouncer between us and Postgres."""

import os
import pwd
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg2
import sqlalchemy as sa

from harness import eventually
from jobledger.embedded import free_port


def find_pgbouncer() -> str:
    """Where it is.

    Raises:
        AssertionError: it is not installed.
    """
    found = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    assert found, "PgBouncer is not installed: apt-get install pgbouncer"
    return found


@contextmanager
def pgbouncer(database_url: str, directory: Path, pool_mode: str, *settings: str) -> Iterator[str]:
    """Run one.

    Args:
        database_url: of the database behind it.
        directory: for its files.
        pool_mode: session or transaction.
        settings: more lines of its configuration.

    Yields:
        The URL over it.
    """
    behind, port = sa.make_url(database_url), free_port()
    directory.mkdir()
    account = pwd.getpwnam("nobody") if os.getuid() == 0 else None  # it refuses to run as root
    file = directory / "pgbouncer.ini"
    file.write_text(
        "\n".join([
            "[databases]",
            f"* = host={behind.host} port={behind.port} user={behind.username} password={behind.password}",
            "[pgbouncer]",
            "listen_addr = 127.0.0.1",
            f"listen_port = {port}",
            "unix_socket_dir =",
            "auth_type = any",
            f"pool_mode = {pool_mode}",
            "max_client_conn = 200",
            *settings,
        ])
    )  # fmt: skip
    with (directory / "log").open("w") as log, file.open() as configuration:
        process = subprocess.Popen(
            [find_pgbouncer(), "/proc/self/fd/0"],
            stdin=configuration,
            stdout=log,
            stderr=log,
            cwd="/",
            **({"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []} if account else {}),
        )
    url = behind.set(port=port)
    try:
        eventually(lambda: process.poll() is not None or _answers(url), what="an answer of PgBouncer")
        assert process.poll() is None, (directory / "log").read_text()
        yield url.render_as_string(hide_password=False)
    finally:
        process.kill()
        process.wait()


def _answers(url: sa.URL) -> bool:
    try:
        psycopg2.connect(url.set(drivername="postgresql").render_as_string(hide_password=False)).close()
    except psycopg2.OperationalError:
        return False
    return True
