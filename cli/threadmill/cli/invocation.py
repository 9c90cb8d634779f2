"""What all commands share: the global options, and the options that several of them take."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer

from threadmill.core.logs import configure_logs
from threadmill.core.settings import Settings
from threadmill.producers.queries import MAX_PAGE


@dataclass
class Invocation:
    """One call of the command line.

    folder, shard: None where it is left to the environment. as_json: whether --json was given.
    """

    folder: Path | None = None
    shard: str | None = None
    as_json: bool = False

    def settings(self, *, of: str | None = None, **overrides: Any) -> Settings:
        """The settings, with those overrides that are not None. Raises SettingsInvalid.

        of: the tenant that the command names, if any: its shard is meant, whatever the options say.
        From here on logs go to stderr: stdout belongs to the command's result.
        """
        given = {"folder": self.folder, "shard": self.shard, **overrides}
        settings = Settings(**{name: value for name, value in given.items() if value is not None})
        configure_logs(settings)
        return settings if of is None else settings.for_tenant(of)


def invocation_of(context: typer.Context) -> Invocation:
    """The call that this command belongs to."""
    found = context.find_root().obj
    assert isinstance(found, Invocation)
    return found


def _remember(context: typer.Context, value: bool) -> bool:
    # Errors are reported at the root, which does not see a command's own options.
    invocation_of(context).as_json = value
    return value


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"threadmill {version('threadmill')}")
        raise typer.Exit


VersionOption = Annotated[
    bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
]
FolderOption = Annotated[
    Path | None,
    typer.Option(
        "--folder",
        metavar="PATH",
        help="Where `threadmill dev` keeps its services; default: $THREADMILL_FOLDER or .threadmill.",
    ),
]
ShardOption = Annotated[
    str | None,
    typer.Option(
        "--shard",
        metavar="NAME",
        help="Which of $THREADMILL_SHARDS is meant, where no tenant says so; default: $THREADMILL_SHARD.",
    ),
]
JsonOption = Annotated[
    bool, typer.Option("--json", callback=_remember, is_eager=True, help="Print one JSON document.")
]
LimitOption = Annotated[int, typer.Option("--limit", min=1, max=MAX_PAGE, help="The length of the page.")]
AfterOption = Annotated[
    str | None, typer.Option("--after", metavar="ID", help="The last id of the page before.")
]
TenantOption = Annotated[
    str | None, typer.Option("--tenant", metavar="TENANT", help="Only this tenant's; default: of all.")
]
OwnerOption = Annotated[str, typer.Option("--tenant", metavar="TENANT", help="Whose thread it is.")]
ThreadOption = Annotated[
    str | None, typer.Option("--thread", metavar="THREAD", help="Only those of this thread.")
]
GraphOption = Annotated[
    str | None, typer.Option("--graph", metavar="GRAPH", help="Only those of this graph.")
]
