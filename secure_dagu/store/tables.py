"""The tables. Portable: nothing here or in the queries is SQLite's own.

`attempts.document` is only ever updated in place, so the store grows with runs and not with reports. `tasks` holds what
is queued or leased and nothing else: a dispatch costs the same after 50,000 past runs. `runs.status` and `runs.summary`
repeat what the latest attempt of a root run says, without its nodes, so that a list reads no document.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

SCHEMA = "0003"
"""The migration that makes what stands below (a test compares both)."""

metadata = MetaData()

# SQLite counts rows by itself only for INTEGER; elsewhere 32 bits would not do.
_ROW = BigInteger().with_variant(Integer(), "sqlite")

runs = Table(
    "runs",
    metadata,
    Column("id", _ROW, primary_key=True, autoincrement=True),
    Column("dag", String(255), nullable=False),
    Column("run_id", String(64), nullable=False),
    Column("root_dag", String(255), nullable=False),
    Column("root_run_id", String(64), nullable=False),
    Column("is_root", Boolean(create_constraint=False), nullable=False),
    Column("latest", String(160), nullable=False),
    Column("made_at", BigInteger, nullable=False, server_default="0"),
    Column("status", Integer, nullable=False, server_default="0"),
    Column("labels", Text, nullable=False, server_default=""),
    Column("summary", Text, nullable=False, server_default=""),
    UniqueConstraint("root_dag", "root_run_id", "run_id", "dag", name="uq_runs_identity"),
    Index("ix_runs_name", "dag", "run_id"),
    Index("ix_runs_latest", "latest"),
    Index("ix_runs_roots", "is_root", "id"),
    Index("ix_runs_roots_of_dag", "is_root", "dag", "id"),
    Index("ix_runs_made", "is_root", "made_at", "status", "dag", "run_id"),
    Index("ix_runs_made_of_dag", "is_root", "dag", "made_at"),
    Index("ix_runs_made_of_status", "is_root", "status", "made_at"),
)

attempts = Table(
    "attempts",
    metadata,
    Column("key", String(160), primary_key=True),
    Column("run", _ROW, ForeignKey("runs.id"), nullable=False),
    Column("attempt_id", String(128), nullable=False),
    Column("parent_dag", String(255), nullable=False),
    Column("parent_run_id", String(64), nullable=False),
    Column("claim_key", String(160), nullable=False),
    Column("status", Integer, nullable=False),
    Column("worker", String(255), nullable=False),
    Column("archive", Text, nullable=False),
    Column("labels", Text, nullable=False),
    Column("error", Text, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("started_at", BigInteger, nullable=False),
    Column("finished_at", BigInteger, nullable=False),
    Column("revision", BigInteger, nullable=False),
    Column("document", Text, nullable=False),
    Index("ix_attempts_run", "run"),
    Index("ix_attempts_claim", "claim_key"),
)

tasks = Table(
    "tasks",
    metadata,
    Column("key", String(160), ForeignKey("attempts.key"), primary_key=True),
    Column("place", _ROW, nullable=False),
    Column("enqueued_at", BigInteger, nullable=False),
    Column("leased", Boolean(create_constraint=False), nullable=False),
    Column("worker", String(255), nullable=False),
    Column("token", String(64), nullable=False),
    Column("cancelling", Boolean(create_constraint=False), nullable=False),
    Column("revision", BigInteger, nullable=False),
    Column("body", Text, nullable=False),
)

state = Table(
    "state",
    metadata,
    Column("scope", String(16), primary_key=True),
    Column("namespace", String(255), primary_key=True),
    Column("key", String(512), primary_key=True),
    Column("value", LargeBinary, nullable=False),
    Column("version", BigInteger, nullable=False),
    Column("hash", String(64), nullable=False),
    Column("created_at_ns", BigInteger, nullable=False),
    Column("updated_at_ns", BigInteger, nullable=False),
    Column("by_dag", Text, nullable=False),
    Column("by_run_id", Text, nullable=False),
    Column("by_attempt_id", Text, nullable=False),
    Column("by_step", Text, nullable=False),
)

bundles = Table(
    "bundles",
    metadata,
    Column("digest", String(64), primary_key=True),
    Column("size_bytes", BigInteger, nullable=False),
    Column("stored_at", BigInteger, nullable=False),
)
