"""Run the import now, and print what the jobs do and what they found: `python -m nyc_flights.demo`."""

import sys

from sqlalchemy.orm import Session

from jobledger import JobledgerError, configure
from nyc_flights.follow import Follower
from nyc_flights.jobs import CreateTables
from nyc_flights.pipeline import Step, dispatch_import


def main() -> int:
    """0 if and only if every job has completed."""
    connections = configure()
    follower = Follower()
    setup = Step("Create the tables", "high", CreateTables.dispatch())
    if not follower.until_ended([setup]):
        return 1
    with Session(connections.engine) as session, session.begin():
        steps = dispatch_import(session)
    jobs = 1 + len(steps)
    if not follower.until_ended(steps):
        print(f"Not all of the {jobs} jobs completed.", file=sys.stderr)
        return 1
    report = steps[-1].job.result
    print(f"\n{report['text']}\n")
    print(f"{jobs} jobs completed: {report['flights']:,} flights, {report['airlines']} airlines.")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except JobledgerError as error:
        sys.exit(f"demo: {error}")
