# Databricks notebook source
# MAGIC %md
# MAGIC # The shop
# MAGIC
# MAGIC First task of the upstream job: writes into the source database what has happened in the shop since it ran last. It stands in
# MAGIC for the tills, the catalogue and the customer register; a real pipeline does not have it.
# MAGIC
# MAGIC The database is named by secrets of one scope: `host`, `port`, `database`, `user`, `password`. The code is in the folder above this one.

# COMMAND ----------

# MAGIC %pip install --quiet psycopg2-binary

# COMMAND ----------

dbutils.widgets.text("secret_scope", "meshgate-portfolio", "Scope of the source's secrets")
dbutils.widgets.text("sslmode", "require", "As libpq has it")
dbutils.widgets.text("until", "now", "Up to when, UTC, or now")
dbutils.widgets.text("since", "", "Where the history begins, UTC; only the first time")
dbutils.widgets.text("rate", "300", "Sales an hour")
dbutils.widgets.text("seed", "1", "Seed")
dbutils.widgets.text("faults", "", "Faults, with spaces between them")

# COMMAND ----------

import sys
from pathlib import Path

# A notebook's working folder is its own.
sys.path.insert(0, str(Path.cwd().parent))

from psycopg2.extensions import make_dsn
from source.faults import Fault, instant
from source.writer import generate

# COMMAND ----------

asked = {
    name: dbutils.widgets.get(name)
    for name in ("secret_scope", "sslmode", "until", "since", "rate", "seed", "faults")
}


def secret(key: str) -> str:
    """A secret of the scope."""
    return dbutils.secrets.get(scope=asked["secret_scope"], key=key)


url = make_dsn(
    host=secret("host"),
    port=secret("port"),
    dbname=secret("database"),
    user=secret("user"),
    password=secret("password"),
    sslmode=asked["sslmode"],
)

# COMMAND ----------

written = generate(
    url,
    instant(asked["until"]),
    seed=asked["seed"],
    rate=float(asked["rate"]),
    since=instant(asked["since"]) if asked["since"] else None,
    faults=[Fault.parse(text) for text in asked["faults"].split()],
)
dbutils.notebook.exit(f"{written.rows} rows; written up to {written.until:%Y-%m-%dT%H:%MZ}")
