"""What a project's files say of each of its models, in a form that can be compared between machines and deploys."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sqlmesh.core.environment import EnvironmentStatements
    from sqlmesh.core.node import Node

_REVERTED = "revert to "
"""So begins what SQLMesh adds to a forward-only model whose files say again what they said before; the files do not have it."""


def definition(node: Node) -> str:
    """A short name for what a model, or standalone audit, says itself: another text, another name.

    SQLMesh's fingerprint holds the columns of what it reads, and what that reads; so it changes with each deploy of another
    project. This one does not: it is the same in a checkout, in a plan over several, and in the state after the deploy.
    """
    bare: Any = node
    ours: dict[str, Any] = {"mapping_schema": {}} if getattr(node, "mapping_schema", None) else {}
    if str(node.stamp).startswith(_REVERTED):
        ours["stamp"] = None
    if ours:
        bare = bare.copy(update=ours)
    return hashlib.sha256(f"{bare.data_hash} {bare.metadata_hash}".encode()).hexdigest()[:16]


def definitions(
    nodes: Iterable[Node], statements: Iterable[EnvironmentStatements]
) -> dict[str, tuple[str, str]]:
    """Project and definition of each node, by name, and of what each project runs before and after plans and runs.

    What several projects declare of a table that none of them makes is left out: it belongs to whoever was deployed last.
    """
    found = {
        node.fqn: (node.project or "", definition(node))
        for node in nodes
        if not (node.is_model and node.kind.is_external)
    }
    for one in statements:
        if one.before_all or one.after_all:
            said = json.dumps(json.loads(one.json()), sort_keys=True)
            whose = one.project or ""
            found[f"before_all and after_all of {whose}"] = (
                whose,
                hashlib.sha256(said.encode()).hexdigest()[:16],
            )
    return found
