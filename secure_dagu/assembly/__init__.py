"""The only place that knows everyone: one async context manager a process, one file each.

Resources are entered in the order in which they depend on each other, so that they close in the reverse order.
"""
