"""`api`."""

import click

from jobledger.cli.configuration import connect
from jobledger.registry import load_job_modules
from jobledger.web.app import create_app, serve


@click.command()
@click.option("--host", help="Address to listen on; JOBLEDGER_API_HOST if not said.")
@click.option("--port", type=click.IntRange(0, 65535), help="Port; JOBLEDGER_API_PORT if not said, 0 for any free one.")
def api(host: str | None, port: int | None) -> None:
    """Serve the HTTP API: create jobs, follow them, /health and /docs."""
    connections = connect("jobledger-api", needs_redis=True, is_service=True)
    settings = connections.settings
    load_job_modules(settings.job_modules)
    serve(create_app(connections), host or settings.api_host, settings.api_port if port is None else port)
