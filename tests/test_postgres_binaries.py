"""Which binaries run, as which user, in which folder; and that nothing else is touched."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from meshgate import local_postgres, postgres_binaries, postgres_server
from meshgate.errors import LocalPostgresError
from meshgate.local_postgres import LocalPostgres
from server_probe import LINGER_S, SOURCES, USE, ask, home_of, leave, remove, stopped, until

if TYPE_CHECKING:
    from collections.abc import Iterator

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root drops to another user")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A short linger, and no fsync."""
    monkeypatch.setenv(local_postgres.LINGER_VARIABLE, str(LINGER_S))
    monkeypatch.setenv(postgres_server.FSYNC_VARIABLE, "off")


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder without data; for root it lies below a parent that is closed to others."""
    place = tmp_path / "mesh"
    yield place
    if place.exists():
        remove(place)


@pytest.fixture
def open_parent() -> Iterator[Path]:
    """A folder that every user may enter."""
    parent = Path(tempfile.mkdtemp(dir="/tmp"))
    parent.chmod(0o755)
    yield parent
    if (parent / "mesh").exists():
        remove(parent / "mesh")
    shutil.rmtree(parent)


def test_a_configured_folder_is_taken_or_named_but_never_passed_over(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wrong MESHGATE_POSTGRES_BIN is an error, even where another installation exists."""
    monkeypatch.setenv(postgres_binaries.BIN_VARIABLE, str(tmp_path / "nothing"))
    with pytest.raises(
        LocalPostgresError, match=r"nothing \(MESHGATE_POSTGRES_BIN\) lacks postgres"
    ) as caught:
        LocalPostgres.start(folder)
    assert caught.value.hint
    assert "pip install 'meshgate[local]'" in caught.value.hint
    assert "apt install postgresql" in caught.value.hint


def test_an_old_installation_is_refused(monkeypatch: pytest.MonkeyPatch, open_parent: Path) -> None:
    """Postgres 13 is not enough, and the message says so."""
    for name in ("postgres", "initdb", "psql"):
        (open_parent / name).write_text("#!/bin/sh\necho 'postgres (PostgreSQL) 13.5'\n")
        (open_parent / name).chmod(0o755)
    monkeypatch.setenv(postgres_binaries.BIN_VARIABLE, str(open_parent))
    with pytest.raises(LocalPostgresError, match="is Postgres 13, older than 14"):
        postgres_binaries.find(None)


def test_without_binaries_both_ways_to_get_them_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """No installation at all is an error that tells how to get one."""
    monkeypatch.setattr(postgres_binaries, "_candidates", lambda: iter(()))
    with pytest.raises(LocalPostgresError, match="no usable Postgres binaries") as caught:
        postgres_binaries.find(None)
    assert "pip install" in str(caught.value)
    assert "apt install" in str(caught.value)
    assert caught.value.exit_code == 2


def test_data_of_another_major_version_are_not_opened() -> None:
    """Binaries of another version than the data's are passed over, with both versions named."""
    with pytest.raises(LocalPostgresError, match=r"is Postgres \d+, the data were made by 99"):
        postgres_binaries.find(None, 99)


@as_root
def test_a_wheel_that_the_servers_user_cannot_reach_is_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a virtual environment below a closed folder the binaries are copied once, with their libraries."""
    account = postgres_binaries.server_account(tmp_path / "none")
    wheel = [folder for origin, folder in postgres_binaries._candidates() if origin == "wheel"]
    if not wheel:
        pytest.skip("the wheel is not installed")
    install = wheel[0].parent
    package = install.parent
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    (closed / package.name).mkdir(parents=True)
    (closed / package.name / "__init__.py").touch()
    ignore = shutil.ignore_patterns("include")
    shutil.copytree(install, closed / package.name / install.name, symlinks=True, ignore=ignore)
    libraries = f"{package.name}.libs"
    shutil.copytree(package.with_name(libraries), closed / libraries, symlinks=True)
    monkeypatch.syspath_prepend(closed)
    monkeypatch.delitem(
        sys.modules, package.name, raising=False
    )  # a module that is imported is not looked for
    monkeypatch.delenv(postgres_binaries.BIN_VARIABLE, raising=False)
    found = postgres_binaries.find(account)
    copied = found.folder.parents[2]
    # Before anything is removed: if this is not the copy, it is where the interpreter's own packages are.
    assert copied.name.startswith("meshgate-0-binaries-")
    try:
        assert postgres_binaries.find(account) == found
        assert postgres_binaries.run([str(found.folder / "initdb"), "--version"], account).returncode == 0
        assert stat.S_IMODE(closed.stat().st_mode) == 0o700
        assert not list(copied.parent.glob(f"{copied.name}.*"))
    finally:
        shutil.rmtree(copied)


# -- users and folders


def modes_above(path: Path) -> dict[Path, tuple[int, int, int]]:
    return {each: (each.stat().st_mode, each.stat().st_uid, each.stat().st_gid) for each in path.parents}


@as_root
def test_below_a_closed_folder_root_keeps_the_data_elsewhere_and_changes_no_parent(folder: Path) -> None:
    """Root's server works below a 0700 parent, whose mode and owner stay as they are."""
    folder.mkdir(parents=True)
    folder.parent.chmod(0o700)
    before = modes_above(folder / "x")
    with LocalPostgres.start(folder) as server:
        home = home_of(folder)
        assert home != folder / "postgres"
        assert {path.name for path in (folder / "postgres").iterdir()} == {".gitignore", "elsewhere"}
        assert (home / "data").stat().st_uid != 0
        assert ask(server.url(), "SELECT 1") == 1
        before_home = modes_above(home)
    assert modes_above(folder / "x") == before
    assert modes_above(home) == before_home


@as_root
def test_a_copied_folder_does_not_share_the_data_of_the_original(folder: Path, tmp_path: Path) -> None:
    """A copy of a folder whose data lie elsewhere gets data of its own; a moved one keeps them."""
    with LocalPostgres.start(folder):
        home = home_of(folder)
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    other = home_of(copy)
    assert other != home
    assert home_of(copy) == other
    moved = tmp_path / "moved"
    folder.rename(moved)
    assert home_of(moved) == home
    moved.rename(folder)
    shutil.rmtree(other)


@as_root
def test_data_that_are_gone_are_missed_and_not_replaced_in_silence(folder: Path) -> None:
    """When the shared place was cleaned up, start says so instead of making an empty server."""
    with LocalPostgres.start(folder):
        home = home_of(folder)
    until(lambda: stopped(folder), "the server stops")
    shutil.rmtree(home)
    with pytest.raises(LocalPostgresError, match="is gone"):
        LocalPostgres.start(folder)
    shutil.rmtree(folder)


@as_root
def test_a_folder_planted_in_the_shared_place_is_refused(tmp_path: Path) -> None:
    """A link or a foreign folder where ours should be is never used."""
    planted = tmp_path / "planted"
    planted.mkdir()
    os.chown(planted, 65534, 65534)
    link = tmp_path / "link"
    link.symlink_to(tmp_path)
    file = tmp_path / "file"
    file.touch(mode=0o600)
    for path in (planted, link, file):
        with pytest.raises(LocalPostgresError, match="not a folder of this user"):
            postgres_binaries.own_folder(path, 0o711)


@as_root
def test_an_ordinary_user_runs_it_as_himself(open_parent: Path) -> None:
    """Without root the server runs as the user, in the named folder, and stops like any other."""
    open_folder = open_parent / "mesh"
    account = postgres_binaries.server_account(open_folder)
    assert account
    binaries = postgres_binaries.find(account)
    library = open_parent / "library"
    shutil.copytree(SOURCES / "meshgate", library / "meshgate", ignore=shutil.ignore_patterns("__pycache__"))
    for path in (library, *library.rglob("*")):
        path.chmod(0o755)
    newest = "import sys; sys.exit(sys.version_info < (3, 11))"
    pythons = [sys.executable, "/usr/local/bin/python3", "/usr/bin/python3"]
    identity: dict[str, Any] = {"user": account.uid, "group": account.gid, "extra_groups": [], "cwd": "/"}

    def runs(python: str) -> bool:
        try:
            return subprocess.run([python, "-c", newest], check=False, **identity).returncode == 0
        except OSError:
            return False

    usable = [python for python in pythons if runs(python)]
    if not usable:
        pytest.skip(f"{account.name} can run no Python >= 3.11 here")
    open_folder.mkdir()
    os.chown(open_folder, account.uid, account.gid)
    environment = os.environ | {
        "PYTHONPATH": str(library),
        postgres_binaries.BIN_VARIABLE: str(binaries.folder),
        "HOME": "/",
    }
    process = subprocess.Popen(
        [usable[0], "-c", USE, str(open_folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        **identity,
    )
    assert process.stdout
    _, url = process.stdout.readline().split()
    assert ask(url, "SELECT 1") == 1
    data = open_folder / "postgres" / "data"
    assert data.stat().st_uid == account.uid
    assert stat.S_IMODE((open_folder / "postgres").stat().st_mode) == 0o700
    # Root may attach too: the owner of the data decides who the server is.
    with LocalPostgres.start(open_folder) as server:
        assert server.url() == url
    leave(process)
    until(lambda: postgres_server.find_running(data) is None, "the server stops")
