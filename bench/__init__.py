"""Measurements of whole processes over mutual TLS on loopback; see README.md."""
