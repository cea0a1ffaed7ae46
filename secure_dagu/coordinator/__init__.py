"""The coordinator: takes tasks in, hands them to workers, takes in what these report. Start reading at `tasks`."""
