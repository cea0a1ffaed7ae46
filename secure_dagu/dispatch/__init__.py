"""Who may run a task, and until when. Pure."""
