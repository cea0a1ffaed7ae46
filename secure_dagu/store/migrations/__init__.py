"""Alembic's folder: `env.py`, `script.py.mako` and one file a schema version."""
