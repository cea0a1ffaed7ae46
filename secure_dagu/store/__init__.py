"""What is remembered: runs, attempts, tasks and shared values in a database, logs and artifacts as files."""
