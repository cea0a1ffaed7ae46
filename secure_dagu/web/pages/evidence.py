"""The compliance page: how this server's controls stand, and the exceptions that are open."""

from __future__ import annotations

from typing import Final

from fastapi import APIRouter, Request
from starlette.responses import Response

from secure_dagu.web.api import views_compliance
from secure_dagu.web.api.deps import Change, Need
from secure_dagu.web.pages.frame import entered, render
from secure_dagu.web.threads import on_thread

EVIDENCE: Final = {
    "peer_mtls": "/links",
    "tls_min_12": "/links",
    "cert_validity": "/certificates",
    "audit_enabled": "/audit-logs?verify=1",
    "auth_enabled": "/users",
    "api_tls": "/certificates",
}
"""Control → the page that shows what it was judged from, where there is one."""
FRAMEWORKS: Final = (
    ("pciDss4", "PCI DSS 4.0"), ("soc2", "SOC 2"), ("nist80053", "NIST SP 800-53"), ("iso27001", "ISO/IEC 27001"),
)  # fmt: skip

router = APIRouter(include_in_schema=False)


@router.get("/compliance")
async def compliance(request: Request) -> Response:
    """Show the compliance report."""
    services, person = await entered(request, Need.AUDIT)
    parts = services.parts
    await parts.gate.record(request, person, Change.AUDIT_READ, "report:compliance")
    report = views_compliance.report(await on_thread(parts.compliance))
    return render(
        request, person, "compliance.html", report=report, evidence=EVIDENCE, frameworks=FRAMEWORKS,
        failed=sum(control["status"] == "fail" for control in report["controls"]),
    )  # fmt: skip
