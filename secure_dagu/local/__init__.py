"""Runs on this host without a coordinator: start, retry, stop, queue, and the records that they leave."""
