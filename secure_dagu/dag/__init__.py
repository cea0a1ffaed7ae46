"""What to run: the workflow language. Pure."""
