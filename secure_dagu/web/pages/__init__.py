"""The Web UI: pages made on the server."""
