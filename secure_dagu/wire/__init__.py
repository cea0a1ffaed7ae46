"""coordinator.v1 over gRPC: codec, streams, status, server, client."""
