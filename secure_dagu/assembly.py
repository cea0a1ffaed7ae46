"""The only place that knows everyone: one async context manager a process."""
