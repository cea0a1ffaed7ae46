"""Authenticated byte links: the only room that speaks TLS.

Public names live in their modules: `context.server_policy`, `context.client_policy`, `context.UnsafePlaintext`,
`listener.listen`, `dialer.dialers`, `register.Register`, `private.folder`.
"""
