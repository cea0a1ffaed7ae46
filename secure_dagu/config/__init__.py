"""Settings: declared once, read from flags, variables and one file."""
