"""The only room that can sign."""
