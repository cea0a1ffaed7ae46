"""The first schema."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

_ROW = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def _text(name: str, size: int = 0) -> sa.Column[str]:
    return sa.Column(name, sa.String(size) if size else sa.Text(), nullable=False)


def _number(name: str) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger(), nullable=False)


def _flag(name: str) -> sa.Column[bool]:
    return sa.Column(name, sa.Boolean(create_constraint=False), nullable=False)


def upgrade() -> None:
    """Make every table."""
    op.create_table(
        "runs",
        sa.Column("id", _ROW, primary_key=True, autoincrement=True),
        _text("dag", 255), _text("run_id", 64), _text("root_dag", 255), _text("root_run_id", 64), _flag("is_root"),
        _text("latest", 160),
        sa.UniqueConstraint("root_dag", "root_run_id", "run_id", "dag", name="uq_runs_identity"),
    )  # fmt: skip
    op.create_index("ix_runs_name", "runs", ["dag", "run_id"])
    op.create_index("ix_runs_roots", "runs", ["is_root", "id"])
    op.create_index("ix_runs_roots_of_dag", "runs", ["is_root", "dag", "id"])
    op.create_table(
        "attempts",
        sa.Column("key", sa.String(160), primary_key=True),
        sa.Column("run", _ROW, sa.ForeignKey("runs.id"), nullable=False),
        _text("attempt_id", 128), _text("parent_dag", 255), _text("parent_run_id", 64), _text("claim_key", 160),
        sa.Column("status", sa.Integer(), nullable=False),
        _text("worker", 255), _text("archive"), _text("labels"), _text("error"), _number("created_at"),
        _number("started_at"), _number("finished_at"), _number("revision"), _text("document"),
    )  # fmt: skip
    op.create_index("ix_attempts_run", "attempts", ["run"])
    op.create_index("ix_attempts_claim", "attempts", ["claim_key"])
    op.create_table(
        "tasks",
        sa.Column("key", sa.String(160), sa.ForeignKey("attempts.key"), primary_key=True),
        sa.Column("place", _ROW, nullable=False),
        _number("enqueued_at"), _flag("leased"), _text("worker", 255), _text("token", 64), _flag("cancelling"),
        _number("revision"), _text("body"),
    )  # fmt: skip
    op.create_table(
        "state",
        sa.Column("scope", sa.String(16), primary_key=True),
        sa.Column("namespace", sa.String(255), primary_key=True),
        sa.Column("key", sa.String(512), primary_key=True),
        sa.Column("value", sa.LargeBinary(), nullable=False),
        _number("version"), _text("hash", 64), _number("created_at_ns"), _number("updated_at_ns"), _text("by_dag"),
        _text("by_run_id"), _text("by_attempt_id"), _text("by_step"),
    )  # fmt: skip
    op.create_table(
        "bundles", sa.Column("digest", sa.String(64), primary_key=True), _number("size_bytes"), _number("stored_at")
    )
