"""Say which event each RPC leaves. A table; a test walks `RPC_RULES` and finds every method here.

Polls, heartbeats and probes come several times a second and say nothing new: the connection that they travel on is
the event. Every method leaves `call.denied` when it is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from secure_dagu.audit.events import Action
from secure_dagu.security.roles import COORDINATOR_SERVICE, EVENTS_SERVICE, HEALTH_SERVICE, OPERATIONS_SERVICE

ACTION_OF: Mapping[str, Action] = MappingProxyType(
    {
        COORDINATOR_SERVICE + "Poll": Action.LINK_OPENED,
        COORDINATOR_SERVICE + "Heartbeat": Action.LINK_OPENED,
        COORDINATOR_SERVICE + "RunHeartbeat": Action.LINK_OPENED,
        COORDINATOR_SERVICE + "ClaimAgentSessionCleanup": Action.LINK_OPENED,
        COORDINATOR_SERVICE + "CompleteAgentSessionCleanup": Action.LINK_OPENED,
        COORDINATOR_SERVICE + "AckTaskClaim": Action.TASK_CLAIMED,
        COORDINATOR_SERVICE + "ReportStatus": Action.RUN_ENDED,
        COORDINATOR_SERVICE + "StreamLogs": Action.LOG_WRITTEN,
        COORDINATOR_SERVICE + "StreamArtifacts": Action.ARTIFACT_WRITTEN,
        COORDINATOR_SERVICE + "ResolveSecretReference": Action.SECRET_READ,
        COORDINATOR_SERVICE + "Dispatch": Action.TASK_DISPATCHED,
        COORDINATOR_SERVICE + "GetDAGRunStatus": Action.RUN_READ,
        COORDINATOR_SERVICE + "RequestCancel": Action.RUN_CANCELLED,
        COORDINATOR_SERVICE + "GetDAG": Action.DEFINITION_READ,
        COORDINATOR_SERVICE + "GetState": Action.STATE_READ,
        COORDINATOR_SERVICE + "PutState": Action.STATE_WRITTEN,
        COORDINATOR_SERVICE + "DeleteState": Action.STATE_DELETED,
        COORDINATOR_SERVICE + "ListState": Action.STATE_READ,
        COORDINATOR_SERVICE + "HasWorkspaceBundle": Action.BUNDLE_READ,
        COORDINATOR_SERVICE + "GetWorkspaceBundle": Action.BUNDLE_READ,
        COORDINATOR_SERVICE + "PutWorkspaceBundle": Action.BUNDLE_STORED,
        COORDINATOR_SERVICE + "GetWorkers": Action.WORKERS_READ,
        HEALTH_SERVICE + "Check": Action.LINK_OPENED,
        HEALTH_SERVICE + "Watch": Action.LINK_OPENED,
        EVENTS_SERVICE + "WatchCancellations": Action.LINK_OPENED,
        EVENTS_SERVICE + "Announce": Action.LINK_OPENED,
        OPERATIONS_SERVICE + "ListRuns": Action.RUN_READ,
        OPERATIONS_SERVICE + "FindRuns": Action.RUN_READ,
        OPERATIONS_SERVICE + "CountRuns": Action.RUN_READ,
        OPERATIONS_SERVICE + "FollowRun": Action.RUN_READ,
        OPERATIONS_SERVICE + "ReadLog": Action.RUN_READ,
        OPERATIONS_SERVICE + "ReadLogPage": Action.RUN_READ,
        OPERATIONS_SERVICE + "ListArtifacts": Action.RUN_READ,
        OPERATIONS_SERVICE + "ReadArtifact": Action.RUN_READ,
        OPERATIONS_SERVICE + "DeleteRun": Action.RUN_DELETED,
        OPERATIONS_SERVICE + "ListMachines": Action.WORKERS_READ,
        OPERATIONS_SERVICE + "DrainWorker": Action.WORKER_DRAINED,
        OPERATIONS_SERVICE + "ListLinks": Action.WORKERS_READ,
    }
)
"""Full method name to what an admitted call leaves."""
