"""What a project's files say of each of its models, in a form that can be compared between machines and deploys."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sqlmesh.core.node import Node


def definition(node: Node) -> str:
    """A short name for what a model, or standalone audit, says itself: another text, another name.

    SQLMesh's fingerprint holds the columns of what it reads, and what that reads; so it changes with each deploy of another
    project. This one does not: it is the same in a checkout, in a plan over several, and in the state after the deploy.
    """
    bare: Any = node
    if getattr(node, "mapping_schema", None):
        bare = bare.copy(update={"mapping_schema": {}})
    return hashlib.sha256(f"{bare.data_hash} {bare.metadata_hash}".encode()).hexdigest()[:16]


def definitions(nodes: Iterable[Node]) -> dict[str, tuple[str, str]]:
    """Project and definition of each node, by name.

    What several projects declare of a table that none of them makes is left out: it belongs to whoever was deployed last.
    """
    return {
        node.fqn: (node.project or "", definition(node))
        for node in nodes
        if not (node.is_model and node.kind.is_external)
    }
