"""The tables and views of an audit database.

Tables only grow: a decision and what became of it are two rows, which the view ``decisions``
joins. The one row that changes is the run's own in ``runs``, which is the position as well. Only
what SQLite and PostgreSQL spell alike is used. docs/audit.md tells what stands where.
"""

from __future__ import annotations

from collections.abc import Iterator

SCHEMA = 1
"""Version of the tables and views; a database of another is refused."""

RUNS = {
    "log": "TEXT PRIMARY KEY",
    "run": "TEXT",
    "started": "DOUBLE PRECISION",
    "version": "TEXT",
    "seed": "BIGINT",
    "host_weights": "TEXT",
    "config": "TEXT",
    "platform": "JSONB",
    "source": "TEXT NOT NULL",
    "verified_by": "TEXT NOT NULL",
    "key_pinned": "BOOLEAN NOT NULL",
    "events": "BIGINT NOT NULL",
    "segments": "BIGINT NOT NULL",
    "head": "TEXT NOT NULL",
    "checkpoint": "BIGINT",
    "ended": "BOOLEAN NOT NULL",
    "outcome": "TEXT",
    "reason": "TEXT",
    "last_step": "BIGINT",
    "final_weights": "TEXT",
    "lattice": "TEXT",
    "lattice_agrees": "BOOLEAN",
    "figures": "JSONB",
    "steps_lost": "BIGINT NOT NULL",
    "audit": "TEXT NOT NULL",
    "code": "TEXT NOT NULL",
}
"""Columns of ``runs`` with their types."""

_PLACE = {"log": "TEXT NOT NULL", "event": "BIGINT NOT NULL"}

TABLES = {
    "events": {
        **_PLACE,
        "segment": "BIGINT NOT NULL",
        "kind": "TEXT NOT NULL",
        "time": "DOUBLE PRECISION",
        "step": "BIGINT",
        "actor": "TEXT NOT NULL",
        "body": "JSONB NOT NULL",
    },
    "blueprints": {**_PLACE, "blueprint": "TEXT NOT NULL", "name": "TEXT NOT NULL"},
    "decided": {
        **_PLACE,
        "decision": "BIGINT NOT NULL",
        "step": "BIGINT NOT NULL",
        "at_step": "BIGINT NOT NULL",
        "seed": "BIGINT NOT NULL",
        "slot": "TEXT NOT NULL",
        "blueprint": "TEXT NOT NULL",
        "source": "TEXT NOT NULL",
        "target": "TEXT NOT NULL",
        "reason": "TEXT NOT NULL",
        "removal": "TEXT NOT NULL",
        "objective": "TEXT",
    },
    "settled": {
        **_PLACE,
        "decision": "BIGINT NOT NULL",
        "step": "BIGINT NOT NULL",
        "outcome": "TEXT NOT NULL",
        "reason": "TEXT",
        "steps_lost": "BIGINT",
        "seed_weights": "TEXT",
    },
    "trials": {
        **_PLACE,
        "step": "BIGINT NOT NULL",
        "seed": "BIGINT NOT NULL",
        "gain": "DOUBLE PRECISION",
        "error": "DOUBLE PRECISION",
        "shadow_steps": "DOUBLE PRECISION",
    },
    "gates": {
        **_PLACE,
        "step": "BIGINT NOT NULL",
        "seed": "BIGINT NOT NULL",
        "gate": "TEXT NOT NULL",
        "passed": "BOOLEAN NOT NULL",
        "reason": "TEXT NOT NULL",
        "gain": "DOUBLE PRECISION",
        "lower": "DOUBLE PRECISION",
        "figures": "JSONB NOT NULL",
    },
    "digests": {
        **_PLACE,
        "step": "BIGINT",
        "what": "TEXT NOT NULL",
        "name": "TEXT NOT NULL",
        "digest": "TEXT NOT NULL",
    },
}
"""Columns of every other table with their types, by its name."""

_KEYS = {"decided": "decision", "settled": "decision"}
_KEYLESS = frozenset({"digests"})
"""An event may tell of many, by names that need not differ."""

_VIEWS = (
    """CREATE VIEW decisions AS
    SELECT d.log, d.decision, d.seed, d.slot, d.blueprint, d.source, d.target, d.event, d.step,
        d.at_step, d.reason, d.removal, d.objective, COALESCE(s.outcome, 'open') AS outcome,
        s.event AS settled_event, s.step AS settled_step, s.reason AS settled_reason,
        s.steps_lost, s.seed_weights
    FROM decided d LEFT JOIN settled s ON s.log = d.log AND s.decision = d.decision""",
    """CREATE VIEW stages AS
    SELECT log, seed, slot, blueprint, target AS stage, source AS previous, settled_event AS event,
        settled_step AS step, decision, reason, steps_lost, seed_weights
    FROM decisions WHERE outcome = 'applied'""",
    """CREATE VIEW seeds AS
    SELECT d.log, d.seed, d.slot, d.blueprint,
        (SELECT b.name FROM blueprints b WHERE b.log = d.log AND b.blueprint = d.blueprint
            ORDER BY b.event DESC LIMIT 1) AS name,
        (SELECT o.objective FROM decided o WHERE o.log = d.log AND o.seed = d.seed
            AND o.objective IS NOT NULL ORDER BY o.event DESC LIMIT 1) AS objective,
        COALESCE(s.stage, 'dormant') AS stage, s.event, s.step, s.seed_weights
    FROM (SELECT DISTINCT log, seed, slot, blueprint FROM decided) d
    LEFT JOIN stages s ON s.log = d.log AND s.seed = d.seed AND s.event =
        (SELECT MAX(t.event) FROM stages t WHERE t.log = d.log AND t.seed = d.seed)""",
)


def definitions() -> Iterator[str]:
    """The statements that make an empty database."""
    yield "CREATE TABLE esper_audit (schema_version BIGINT NOT NULL)"
    yield f"INSERT INTO esper_audit VALUES ({SCHEMA})"
    yield f"CREATE TABLE runs ({_columns(RUNS)})"
    for table, columns in TABLES.items():
        key = f", PRIMARY KEY (log, {_KEYS.get(table, 'event')})"
        key = "" if table in _KEYLESS else key
        yield f"CREATE TABLE {table} ({_columns(columns)}{key})"
    yield "CREATE INDEX decided_seed ON decided (log, seed)"
    yield "CREATE INDEX digests_event ON digests (log, event)"
    yield from _VIEWS


def _columns(columns: dict[str, str]) -> str:
    return ", ".join(f"{name} {kind}" for name, kind in columns.items())
