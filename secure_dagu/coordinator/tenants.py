"""Whose tenant's runs a dispatcher or coordinator may touch (threat T07). The rule is `security.policy`.

A run has the tenant of its root's worker selector, written down among the labels of the root's attempts; labels with
the reserved prefix come from nowhere else. A child stays in the tenant of its root, whoever dispatches it.
"""

from __future__ import annotations

from collections.abc import Callable

from msgspec.structs import replace

from secure_dagu.dispatch.model import Caller, Task
from secure_dagu.errors import OtherTenant
from secure_dagu.run.model import DagRunRef
from secure_dagu.security import policy
from secure_dagu.security.admission import Deny
from secure_dagu.security.grants import TENANT
from secure_dagu.security.policy import NO_TENANT, STRICT, UNBOUND, Mode, Policy, tenant_of, tenant_of_labels
from secure_dagu.store.api import AttemptRow, Store

WouldDeny = Callable[[Caller, str, Deny], None]
"""Takes the caller, the method's name and the refusal that only the dry-run holds back; must return at once."""


class Tenants:
    """Ask the rule about runs that are stored or about to be."""

    def __init__(
        self,
        store: Store,
        *,
        policy: Callable[[], Policy] = lambda: STRICT,
        would_deny: WouldDeny = lambda _caller, _method, _deny: None,
    ) -> None:
        """Take the store. `policy` is asked at each call: it may change."""
        self._store = store
        self._policy = policy
        self._would_deny = would_deny

    def check(self, caller: Caller, tenant: str, method: str) -> None:
        """Let a caller touch runs of a tenant.

        Raises:
            OtherTenant: its certificate does not grant that tenant.
        """
        if policy.reaches_tenant(caller, tenant):
            return
        deny = policy.other_tenant(caller, tenant)
        if self._policy().mode is Mode.ENFORCE:
            raise deny.error
        self._would_deny(caller, method, deny)

    async def check_run(self, caller: Caller, root: DagRunRef, method: str) -> None:
        """Let a caller touch a tree of runs; one that is not there is nobody's.

        Raises:
            OtherTenant: as `check`.
        """
        if is_bound(caller):
            self.check(caller, await self.of_run(root), method)

    async def of_run(self, root: DagRunRef) -> str:
        """Return the tenant of a tree of runs."""
        row = await self._store.latest(run=root, root=root)
        return NO_TENANT if row is None else tenant_of_labels(row.labels)

    def shown(self, caller: Caller, row: AttemptRow, method: str) -> bool:
        """Tell whether a list shows a root run to a caller."""
        try:
            self.check(caller, tenant_of_labels(row.labels), method)
        except OtherTenant:
            return False
        return True

    async def placed(self, caller: Caller, task: Task) -> Task:
        """Return a task as it is dispatched: in the tenant of its root, which the caller must reach.

        Raises:
            OtherTenant: the caller does not reach it, or a child asks for workers of another tenant than its root.
        """
        tenant = tenant_of(task.worker_selector)
        if task.is_root:
            await self.check_run(caller, task.root, "Dispatch")  # a retry: whose run is it
            self.check(caller, tenant, "Dispatch")
            return task
        of_root = await self.of_run(task.root)
        self.check(caller, of_root, "Dispatch")
        if tenant == of_root:
            return task
        if tenant != NO_TENANT:
            raise OtherTenant(
                f"a child of {task.root} may not run in the tenant {tenant[:100]!r}",
                why=f"its root runs {f'in {of_root[:100]!r}' if of_root else 'in none'}",
                fix="dispatch it as a run of its own with a certificate that grants the tenant",
            )
        return replace(task, worker_selector={**task.worker_selector, TENANT: of_root})


def is_bound(caller: Caller) -> bool:
    """Tell whether a caller reaches only the tenants of its certificate."""
    return caller.role not in UNBOUND
