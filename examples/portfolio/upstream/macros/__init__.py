"""SQLMesh's macros of this project."""
