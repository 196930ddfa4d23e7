"""What `up` is asked to do."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Plan:
    """What `up` is asked to do.

    Attributes:
        workers: how many stock `rq worker` processes.
        directory: for the data of the embedded servers, `up.pid` and `urls.env`.
        log_file: takes the output of the processes, which is not shown then.
        command: run once, when everything is ready.
        exits: stop when the command has ended.
    """

    workers: int = 2
    directory: Path = Path(".jobledger")
    log_file: Path | None = None
    command: tuple[str, ...] = ()
    exits: bool = False

    @property
    def urls_file(self) -> Path:
        """Where another shell learns the URLs, while this one runs."""
        return self.directory / "urls.env"

    def code_after(self, signal_number: int) -> int:
        """The exit code after a signal: nobody may take a command for done that was cut short."""
        return 128 + signal_number if self.exits else 0
