"""meshgate: several SQLMesh projects on one warehouse, each on its own schedule, none on missing data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from meshgate.mesh import Mesh

__all__ = ["Mesh", "__version__"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # Lazy, so that `import meshgate` costs nothing until somebody opens a mesh.
    if name == "Mesh":
        from meshgate.mesh import Mesh

        return Mesh
    raise AttributeError(f"module 'meshgate' has no attribute {name!r}")
