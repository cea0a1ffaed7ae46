"""What can be measured and read: metrics, logs, the health port."""
