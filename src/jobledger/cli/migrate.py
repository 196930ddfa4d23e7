"""`migrate`."""

import contextlib
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import click

from jobledger.cli.configuration import connect
from jobledger.cli.output import confirm, escaped, print_json, progress, say
from jobledger.cli.parameters import DURATION, json_option
from jobledger.connections.default import Connections
from jobledger.connections.postgres import unavailable_as_error
from jobledger.connections.sessions import require_sessions
from jobledger.errors import ConfigurationError, LedgerUnavailable
from jobledger.ledger.migrate import OpenTransaction, current_revision, downgrade, open_transactions, revisions, upgrade

APPLICATION_NAME: Final = "jobledger-migrate"
LOOK_SECONDS: Final = 5.0
SAY_SECONDS: Final = 5.0
MOST_TRANSACTIONS: Final = 3
PAUSE_SECONDS: Final = 0.5

_NOT_LET_IN: Final = (
    "password authentication failed",
    "does not exist",
    "no pg_hba.conf entry",
    "no password supplied",
)
"""Messages of Postgres after which waiting is useless. The driver gives no error code for a refused connection."""


@click.command()
@click.option("--to", "target", metavar="REVISION", help="Stop at this revision; the newest if not said.")
@click.option(
    "--wait", type=DURATION, default="60s", show_default=True, help="How long to wait for Postgres, and for locks."
)
@click.option(
    "--down", is_flag=True, help="Go back to --to. Additions of newer revisions are dropped, with their data."
)
@click.option("--yes", is_flag=True, help="Go back without asking.")
@json_option
def migrate(target: str | None, wait: float, down: bool, yes: bool, as_json: bool) -> None:
    """Bring the database's schema to this version.

    Waits for Postgres, and for another migration that runs; two at once are harmless. Running jobs are not blocked: if
    a job has locked a table, the migration tries again for a while. The next migration continues an interrupted one.
    """
    known = revisions()[::-1]
    if target is not None and target not in known:
        raise click.BadParameter(f"{target!r} is none of {', '.join(known)}.", param_hint="--to")
    if down and target is None:
        raise click.UsageError("--down needs --to REVISION.")
    connections = connect(APPLICATION_NAME)
    before = _wait_for_postgres(connections, wait)
    require_sessions(connections, "a migration needs")
    ran: list[str] = []
    if down:
        _run_down(connections, target or "", before, wait, yes)
    elif before is None or before in known:
        pending = known[known.index(before) + 1 :] if before else known
        if before and target and known.index(target) < known.index(before):
            raise click.UsageError(f"The schema is at {before} already; going back to {target} needs --down.")
        _run(connections, target or known[-1], pending, wait, ran)
    with connections.transaction(LOOK_SECONDS) as connection:
        now = current_revision(connection)
    if as_json:
        print_json({"from": before, "to": now, "ran": ran})
    elif now != before:
        say(f"Migrated the schema from {before or 'nothing'} to {now}.")
    elif now in known:
        say(f"Nothing to do: the schema is at {now}.")
    else:
        say(f"Nothing to do: the schema is at {now}, of a newer version than this one.")


def _run(connections: Connections, target: str, pending: tuple[str, ...], wait: float, ran: list[str]) -> None:
    with progress("Migrating", len(pending)) as advance, unavailable_as_error(), _saying_who_is_in_the_way(connections):

        def step(revision: str) -> None:
            ran.append(revision)
            advance()

        upgrade(connections.engine, target, step, wait)


def _run_down(connections: Connections, target: str, before: str | None, wait: float, yes: bool) -> None:
    known = revisions()[::-1]
    if before not in known or known.index(before) < known.index(target):
        raise click.UsageError(f"The schema is at {before or 'nothing'}; there is no way back from there to {target}.")
    confirm(f"Drop what came after {target}, with its data?", yes)
    with unavailable_as_error(), _saying_who_is_in_the_way(connections):
        downgrade(connections.engine, target, wait)


@contextmanager
def _saying_who_is_in_the_way(connections: Connections) -> Iterator[None]:
    """While a migration takes long, print repeatedly which transactions it may be waiting for."""
    ended = threading.Event()

    def look() -> None:
        started = time.monotonic()
        while not ended.wait(SAY_SECONDS):
            with contextlib.suppress(LedgerUnavailable), connections.transaction(LOOK_SECONDS) as connection:
                found = open_transactions(connection, APPLICATION_NAME, 1.0, MOST_TRANSACTIONS)
                _say_open(time.monotonic() - started, found)

    thread = threading.Thread(target=look, name="jobledger-migrate-look")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _say_open(seconds: float, found: list[OpenTransaction]) -> None:
    said = "; ".join(f"pid {one.pid} ({one.application_name}, {one.state}, {one.seconds:.0f} s)" for one in found)
    about = (
        f"it may have to wait for the end of these transactions: {said}." if found else "no transaction is in the way."
    )
    click.echo(f"jobledger: migrating for {seconds:.0f} s; {escaped(about)}", err=True)


def _wait_for_postgres(connections: Connections, wait_seconds: float) -> str | None:
    """The revision of the schema, as soon as Postgres answers.

    Raises:
        ConfigurationError: it refuses the login.
        LedgerUnavailable: it did not answer in time.
    """
    deadline = time.monotonic() + wait_seconds
    said = False
    while True:
        try:
            with connections.transaction(LOOK_SECONDS) as connection:
                return current_revision(connection)
        except LedgerUnavailable as error:
            if will_not_heal(error):
                raise ConfigurationError(f"JOBLEDGER_DATABASE_URL: {error}") from None
            if time.monotonic() + PAUSE_SECONDS > deadline:
                raise LedgerUnavailable(f"No answer within {wait_seconds:g} s. {error}") from None
            if not said:
                click.echo(f"jobledger: waiting up to {wait_seconds:g} s. {escaped(str(error))}", err=True)
                said = True
        time.sleep(PAUSE_SECONDS)


def will_not_heal(error: LedgerUnavailable) -> bool:
    """Whether the error is one after which waiting is useless."""
    return any(words in str(error) for words in _NOT_LET_IN)
