"""The seam to SQLMesh: the only place that imports `sqlmesh` and `sqlglot`.

Importing SQLMesh takes seconds, so nothing here is imported before something has to be evaluated or read from
SQLMesh's state; `meshgate.bridge` itself imports nothing. What crosses the seam is meshgate's own: `Interval`,
`ModelNode`, names; never a snapshot, an expression or epoch milliseconds.

* `contract`: which SQLMesh this was tested with, and whether the installed one still has the same hooks;
* `translate`: snapshots to nodes, milliseconds to instants;
* `scheduler`: SQLMesh's scheduler under the ledger;
* `project`: one opened SQLMesh project;
* `proposal`: what a plan over some checkouts would do, without doing it; `columns`: which columns that is about;
* `enforced`: SQLMesh's own commands under the ledger.
"""
