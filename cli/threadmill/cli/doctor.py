"""`threadmill doctor`: what is wrong, and what to do about it."""

from __future__ import annotations

import typer
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from threadmill.cli.checkup import Checkup
from threadmill.cli.finding import Finding
from threadmill.cli.invocation import JsonOption, invocation_of
from threadmill.cli.output import coloured, show, text


def doctor(context: typer.Context, as_json: JsonOption = False) -> None:
    """Look at database, roles, migrations, broker, workers, graphs, clock, snapshots and dead letters."""
    settings = invocation_of(context).settings()
    checkup = Checkup(settings, embedded=not settings.database_url)
    findings = list(checkup.findings())
    healthy = all(finding.status != "fail" for finding in findings)
    document = {"ok": healthy, "checks": [finding.to_dict() for finding in findings]}
    show(as_json, document, lambda: _view(findings))
    if not healthy:
        raise typer.Exit(1)


def _view(findings: list[Finding]) -> RenderableType:
    grid = Table.grid(padding=(0, 2))
    for finding in findings:
        detail = text(finding.detail)
        if finding.advice:
            detail = Text.assemble(detail, "\n", text(f"→ {finding.advice}", style="bold"))
        grid.add_row(coloured(finding.status), Text(finding.name, style="bold"), detail)
    return grid
