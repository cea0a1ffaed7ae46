"""What happened, provably: a closed vocabulary, a hash chain on disk, signed checkpoints, and their verifier."""
