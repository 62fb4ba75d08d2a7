"""Those that die for `crash_points.py`: processes that count the points which they pass, and end at one of them.

They are forked from a nursery that has imported SQLMesh, which takes seconds, and has opened nothing.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import signal
import socket
import sys
import threading
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pandas as pd  # noqa: F401 - SQLMesh's, imported once, before anybody is forked
import sqlmesh.magics  # noqa: F401 - the same
from sqlmesh.core.engine_adapter.base import EngineAdapter

import meshgate.bridge.project  # noqa: F401 - the same
from meshgate import lease
from meshgate.db import Database
from meshgate.mesh import Mesh
from tiny_mesh import at, span

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TextIO

_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG
_READS = frozenset({"clock", "unclean", "written", "requested_time"})
_WRITES = re.compile(r"^\s*(?!SELECT\b|WITH\b|SHOW\b|SET\b|USE\b|DESCRIBE\b)(\w+(?:\s+\w+)?)", re.IGNORECASE)


class Probe:
    """Counts the points of a process, and ends it at one of them.

    Args:
        last: The point to die at, counted from 1; None to live.
        words: Where the points are told, one a line.
    """

    def __init__(self, last: int | None, words: int) -> None:
        self.last = last
        self.words = words
        self.count = 0

    def reach(self, point: str) -> None:
        """Pass a point, or not."""
        if threading.current_thread().name.startswith("lease-"):
            return  # when it renews depends on the time that the others take
        self.count += 1
        os.write(self.words, f"{point}\n".encode())
        if self.count == self.last:
            os.kill(os.getpid(), signal.SIGKILL)

    def watch(self, owner: type, method: str, name: Callable[[Any, str], str | None]) -> None:
        """Make a point of the time before and after each call whose statement has a name."""
        plain = getattr(owner, method)

        def watched(this: Any, sql: str, *args: Any, **kwargs: Any) -> Any:
            called = name(this, sql)
            if called is None:
                return plain(this, sql, *args, **kwargs)
            self.reach(f"before {called}")
            answer = plain(this, sql, *args, **kwargs)
            self.reach(f"after {called}")
            return answer

        setattr(owner, method, watched)


def ledger_function(_: Database, sql: str) -> str | None:
    """The function of the ledger that a statement calls, if it changes anything."""
    called = [found for found in re.findall(r"meshgate\.(\w+)\(", sql) if found not in _READS]
    return called[0] if called else None


def engine_write(adapter: EngineAdapter, sql: str) -> str | None:
    """What a statement of SQLMesh does to the warehouse or to its state, if it changes anything."""
    found = _WRITES.match(re.sub(r"^\s*/\*.*?\*/", "", sql, flags=re.DOTALL))
    return f"{adapter.dialect} {found[1].upper()}" if found else None


def live_and_die(order: dict[str, Any], words: int) -> None:
    """Do what is ordered, and die where it is."""
    probe = Probe(order["point"], words)
    probe.watch(Database, "execute", ledger_function)
    probe.watch(EngineAdapter, "_execute", engine_write)
    if order["elsewhere"]:
        lease._machine = lambda: {"boot": "of another machine", "pids": "of another machine"}
    # Else the points that a run passes would depend on when the last one tidied. (The package has a function of that name.)
    vars(sys.modules["meshgate.coordinator.run"])["_TIDY_EVERY"] = timedelta(0)
    now = at(order["minutes"])
    with Mesh.open(order["folder"]) as mesh:
        if order["project"] == "deploy":
            mesh.deploy("upstream", now=now)
        elif order["project"] == "restate":
            ask_again(mesh, order["minutes"])
            for project in ("upstream", "downstream"):
                mesh.run(project, now=now)
        else:
            mesh.run(order["project"], now=now)


def ask_again(mesh: Mesh, minutes: int) -> None:
    """Ask for the last time that is recorded: up to half an hour, in which an hour may end."""
    mesh.restate(
        "bronze.events",
        span(minutes - 35, minutes - 5),
        reason=f"point at {mesh.ledger.revision()}",
        apply=True,
    )


class Nursery:
    """A process that has imported everything and opened nothing; forks those that die."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        self.pid = os.fork()
        if self.pid == 0:
            ours.close()
            _die_with_parent()
            try:
                self._serve(theirs.makefile("rw"))
            finally:
                os._exit(0)
        theirs.close()
        self._wire = ours.makefile("rw")

    def bear(self, **order: Any) -> tuple[list[str], int]:
        """Let a child do what is ordered; the points that it passed, and how it ended (as `os.waitpid` says)."""
        self._wire.write(json.dumps(order) + "\n")
        self._wire.flush()
        told = json.loads(self._wire.readline())
        return told["words"].split("\n")[:-1], told["status"]

    def close(self) -> None:
        self._wire.close()
        os.waitpid(self.pid, 0)

    def _serve(self, wire: TextIO) -> None:
        for line in wire:
            reader, writer = os.pipe()
            pid = os.fork()
            if pid == 0:
                _die_with_parent()
                try:
                    live_and_die(json.loads(line), writer)
                    os._exit(0)
                except BaseException as error:  # noqa: BLE001 - it is told to those who wait
                    os.write(writer, f"{type(error).__name__}: {error}\n".encode())
                    os._exit(1)
            os.close(writer)
            with open(reader, encoding="utf-8") as words:  # noqa: PTH123 - a descriptor
                said = words.read()
            _, status = os.waitpid(pid, 0)
            wire.write(json.dumps({"words": said, "status": status}) + "\n")
            wire.flush()


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
