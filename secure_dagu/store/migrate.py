"""Run the Alembic migrations in this process, on our own connection."""

from __future__ import annotations

from alembic import command
from alembic.config import Config
from sqlalchemy import Engine


def upgrade(engine: Engine) -> None:
    """Bring the schema to the newest version, in one transaction."""
    config = Config()
    config.set_main_option("script_location", "secure_dagu.store:migrations")
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
