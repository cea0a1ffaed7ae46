"""A worker process: poll coordinators, run tasks, deliver statuses, logs and artifacts."""

from secure_dagu.worker.seam import Execute, Workspaces
from secure_dagu.worker.timings import Timings
from secure_dagu.worker.worker import Worker

__all__ = ["Execute", "Timings", "Worker", "Workspaces"]
