"""The `threadmill` command."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperGroup

from threadmill.cli import database, dead_letters, graphs, limits, runs, threads
from threadmill.cli.dev import dev
from threadmill.cli.doctor import doctor
from threadmill.cli.enqueue import enqueue
from threadmill.cli.extras import needs
from threadmill.cli.flower import flower
from threadmill.cli.invocation import (
    FolderOption,
    Invocation,
    JsonOption,
    ShardOption,
    VersionOption,
    invocation_of,
)
from threadmill.cli.output import report
from threadmill.cli.worker import worker
from threadmill.core.errors import ThreadmillError


class _Root(TyperGroup):
    """Where named errors end: on stderr, with exit status 1. Others keep their traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except ThreadmillError as error:
            report(error, invocation_of(ctx).as_json)
            raise typer.Exit(1) from None


app = typer.Typer(
    cls=_Root,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    # Typer's tracebacks show local variables, which may be inputs or passwords.
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def root(
    context: typer.Context,
    folder: FolderOption = None,
    shard: ShardOption = None,
    version: VersionOption = False,  # noqa: ARG001
) -> None:
    """Threadmill runs LangGraph graphs as a fleet: durable runs, ordered threads, isolated tenants."""
    context.obj = Invocation(folder, shard)


def demo(context: typer.Context, as_json: JsonOption = False) -> None:
    """Run three tenants' 300 questions through a fleet of its own, an outage and the death of a worker."""
    settings = invocation_of(context).settings()
    with needs("dev"):
        from threadmill.cli.demo import run_demo  # noqa: PLC0415
    raise typer.Exit(run_demo(settings.folder, json=as_json))


for command, example in (
    (demo, "threadmill demo"),
    (dev, "threadmill dev --workers 2"),
    (worker, "threadmill worker --concurrency 200"),
    (flower, "threadmill flower --port 5556"),
    (enqueue, 'threadmill enqueue guestbook --tenant acme --thread t-1 --input \'{"name": "Ada"}\' --wait'),
    (doctor, "threadmill doctor"),
):
    app.command(epilog=f"Example: `{example}`")(command)
for group in (runs.app, threads.app, dead_letters.app, graphs.app, limits.app, database.app):
    app.add_typer(group)


def main() -> None:
    """Runs the command line and ends the process with its exit status."""
    app(prog_name="threadmill")


if __name__ == "__main__":
    main()
