"""REST API v1 (docs/reference/rest-api.md): one module a section, each a router; shapes are pure functions."""
