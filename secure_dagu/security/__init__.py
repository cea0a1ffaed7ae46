"""Who is calling, and may they. Verifies; never signs."""
