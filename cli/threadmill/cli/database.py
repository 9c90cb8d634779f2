"""`threadmill db`: bring the ledger's tables up, take them down, and say where they stand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import psycopg
import typer
from rich.text import Text

from threadmill.cli.extras import needs
from threadmill.cli.invocation import JsonOption, invocation_of
from threadmill.cli.output import note, show
from threadmill.core import migrate
from threadmill.core.database import address
from threadmill.core.errors import ExtraMissing, MigrationFailed
from threadmill.core.revision import REVISION
from threadmill.core.settings import Settings

app = typer.Typer(name="db", help="The ledger's tables and their migrations.", no_args_is_help=True)


@dataclass(frozen=True)
class Upgrade:
    """What an upgrade did. previous: None for an empty database."""

    previous: str | None
    revision: str | None
    langgraph_tables: bool


def upgrade_database(settings: Settings) -> Upgrade:
    """Migrates the ledger, and LangGraph's own tables where langgraph is installed."""
    previous = migrate.current(settings)
    migrate.upgrade(settings)
    try:
        with needs("worker"):
            from threadmill.workers.tables import upgrade_langgraph_tables  # noqa: PLC0415
    except ExtraMissing as error:
        note(f"LangGraph's checkpoint and store tables are left as they are: {error}")
        return Upgrade(previous, migrate.current(settings), False)
    try:
        upgrade_langgraph_tables(settings)
    except psycopg.Error as error:
        reason = str(error).partition("\n")[0]
        raise MigrationFailed(address(settings.database_url), f"LangGraph's tables: {reason}") from error
    return Upgrade(previous, migrate.current(settings), True)


@app.command(
    epilog="Example: `THREADMILL_DATABASE_URL=postgresql://owner@db/threadmill threadmill db upgrade`"
)
def upgrade(context: typer.Context, as_json: JsonOption = False) -> None:
    """Bring the tables to this version's revision, as the role that will own them; may be repeated."""
    done = upgrade_database(invocation_of(context).settings().located())
    document = {
        "revision": done.revision,
        "previous": done.previous,
        "langgraph_tables": done.langgraph_tables,
    }
    changed = f"was {done.previous or 'empty'}" if done.previous != done.revision else "nothing to do"
    show(as_json, document, lambda: Text(f"the database is at revision {done.revision} ({changed})"))


@app.command(epilog="Example: `threadmill db status`")
def status(context: typer.Context, as_json: JsonOption = False) -> None:
    """The revision the database is at, and the one this version needs; fails where they differ."""
    found = migrate.current(invocation_of(context).settings().located())
    current = found == REVISION
    document = {"revision": found, "expected": REVISION, "current": current}
    show(as_json, document, lambda: _status_line(found, current))
    if not current:
        raise typer.Exit(1)


@app.command(epilog="Example: `threadmill db downgrade base --yes`")
def downgrade(
    context: typer.Context,
    revision: Annotated[
        str,
        typer.Argument(
            metavar="REVISION", help="Where to go back to; `base` drops the whole ledger.", show_default=False
        ),
    ],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Take the tables down to an older revision; what newer ones had added is lost, with its data."""
    settings = invocation_of(context).settings().located()
    if not yes:
        if as_json:
            raise typer.BadParameter("with --json nothing is asked, so add --yes")
        typer.confirm(f"Go down to revision {revision}? What is dropped on the way is lost.", abort=True)
    previous = migrate.current(settings)
    migrate.downgrade(settings, revision)
    found = migrate.current(settings)
    show(
        as_json,
        {"revision": found, "previous": previous},
        lambda: Text(f"the database is at revision {found or 'base'} (was {previous or 'empty'})"),
    )


def _status_line(found: str | None, current: bool) -> Text:
    if current:
        return Text.assemble(("ok ", "green"), f"the database is at revision {found}, as it should be")
    at = f"is at revision {found}" if found else "holds no Threadmill tables"
    return Text.assemble(
        ("fail ", "red"), f"the database {at}, expected {REVISION}; run `threadmill db upgrade`"
    )
