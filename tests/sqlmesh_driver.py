"""Plain SQLMesh in a process of its own, at a simulated instant."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import datetime

    from tiny_mesh import TinyMesh


def plain_runs(tiny: TinyMesh, project: str, now: datetime) -> subprocess.Popen[str]:
    """Start `Context.run`; the process prints the status. `sqlmesh run` itself has no option for the instant."""
    code = (
        "from sqlmesh.core.console import NoopConsole, set_console; from sqlmesh.core.context import Context\n"
        "set_console(NoopConsole())\n"
        f"context = Context(paths=[{str(tiny.folder / project)!r}], load=False)\n"
        f"print(context.run('prod', execution_time={now.isoformat()!r}, skip_janitor=True).name)\n"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=tiny.environment(),
    )
