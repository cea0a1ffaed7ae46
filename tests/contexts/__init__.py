"""Other servers, by name."""
