"""Everything that can be set, from the environment (`THREADMILL_…`) or from the caller."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from threadmill.core.errors import ServicesNotFound, SettingsInvalid

SERVICES_FILE = "services.json"
# In the environment everything is text: there, "none" stands for None.
_NONE = BeforeValidator(lambda value: None if str(value).lower() == "none" else value)


class Settings(BaseSettings):
    """Threadmill's settings; frozen, built once at an entry point and handed down.

    Where `database_url` or `broker_url` is not set, the services of a `threadmill dev` that runs with
    the same `folder` are used. Raises SettingsInvalid and ServicesNotFound.
    """

    model_config = SettingsConfigDict(env_prefix="THREADMILL_", frozen=True, extra="ignore")

    folder: Path = Field(default=Path(".threadmill"), description="where embedded services keep their data")
    database_url: str = Field(default="", description="postgresql://user:password@host:port/database")
    database_pooler: Literal["none", "transaction"] = Field(
        default="none", description="transaction: database_url leads through a pooler in transaction mode"
    )
    session_database_url: str = Field(
        default="", description="the same database where a session lasts; empty: database_url"
    )
    broker_url: str = Field(default="", description="redis://host:port/0, or another URL that Celery takes")
    graphs_file: Path = Field(default=Path("langgraph.json"), description="what the workers serve")

    queue: str = Field(default="threadmill", min_length=1, description="the Celery queue of the doorbells")
    concurrency: int = Field(default=100, ge=1, description="runs at once in one worker process")
    pool_size: int = Field(default=8, ge=2, description="Postgres connections of one process")

    max_input_bytes: int = Field(default=4 * 1024 * 1024, ge=1)
    max_output_bytes: int = Field(default=1024 * 1024, ge=1)
    output_ttl: float = Field(default=24 * 3600, gt=0, description="seconds a run's output is kept")
    run_ttl: Annotated[float | None, _NONE] = Field(
        default=30 * 24 * 3600, gt=0, description="seconds a finished run is kept; None keeps it"
    )
    max_stream_events: int = Field(default=10_000, ge=1, description="newest events kept of a run's stream")
    stream_ttl: float = Field(default=600, gt=0, description="seconds a stream is kept after its last event")
    max_pending: Annotated[int | None, _NONE] = Field(
        default=None, ge=1, description="pending runs of all tenants together"
    )
    max_pending_per_tenant: Annotated[int | None, _NONE] = Field(
        default=100_000, ge=1, description="pending runs of a tenant, where its row does not say otherwise"
    )

    connect_timeout: float = Field(default=5, gt=0, description="seconds until a service counts as away")
    heartbeat_interval: float = Field(default=2, gt=0, description="seconds between a worker's heartbeats")
    heartbeat_timeout: float = Field(default=6, gt=0, description="seconds until a worker counts as lost")
    sweep_interval: float = Field(default=1, gt=0, description="seconds between two sweeps of the leader")
    drain_timeout: float = Field(default=30, ge=0, description="seconds for runs to reach a checkpoint")
    ring_again_after: float = Field(default=3, gt=0, description="seconds until a bell counts as lost")
    graphs_refresh: float = Field(default=5, gt=0, description="seconds a producer trusts its list of graphs")

    dead_letter_ttl: Annotated[float | None, _NONE] = Field(
        default=30 * 24 * 3600,
        gt=0,
        description="seconds a resolved or discarded letter is kept; None keeps it",
    )
    webhook_secret: SecretStr | None = Field(
        default=None,
        description="signs what `threadmill dlq watch` posts: whsec_ and 24 to 64 bytes in base64",
    )
    max_replays: int = Field(default=8, ge=0, description="replays of a dead letter before it is parked")
    replay_delay: float = Field(default=30, gt=0, description="seconds before the first replay; doubles")
    replay_delay_max: float = Field(default=3600, gt=0, description="seconds between two replays at the most")
    replay_interval: float = Field(default=1, gt=0, description="seconds between looks for due letters")
    replay_window: int = Field(default=64, ge=1, description="dead letters that are replayed at once, in all")

    log_level: str = Field(default="INFO", pattern="^(DEBUG|INFO|WARNING|ERROR)$")
    log_format: str = Field(default="auto", pattern="^(auto|json|console)$")

    flower_host: str = Field(default="127.0.0.1", description="where Flower listens")
    flower_port: int = Field(default=5555, ge=0, le=65535, description="0 takes a free port")

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise SettingsInvalid(
                [f"{'.'.join(str(part) for part in e['loc'])}: {e['msg']}" for e in error.errors()]
            ) from None

    def model_post_init(self, _context: object, /) -> None:
        if self.heartbeat_interval >= self.heartbeat_timeout:
            raise SettingsInvalid(
                [
                    f"heartbeat_interval {self.heartbeat_interval:g} s must be shorter than "
                    f"heartbeat_timeout {self.heartbeat_timeout:g} s"
                ]
            )

    def for_sessions(self) -> Settings:
        """These settings for what needs a session that lasts: leases, the leader, notifications, migrations.

        Raises SettingsInvalid where database_url leads through a pooler, and no other is set.
        """
        if self.session_database_url:
            return self.model_copy(
                update={
                    "database_url": self.session_database_url,
                    "session_database_url": "",
                    "database_pooler": "none",
                }
            )
        if self.database_pooler == "none":
            return self
        raise SettingsInvalid(
            [
                "session_database_url: is needed here, as database_pooler is transaction: "
                "the URL of the same database past the pooler"
            ]
        )

    def located(self) -> Settings:
        """These settings with both service URLs filled in.

        Raises ServicesNotFound where one is neither set nor offered by a running `threadmill dev`.
        """
        if self.database_url and self.broker_url:
            return self
        services = running_services(self.folder)
        found = {
            name: getattr(self, name) or services.get(name, "") for name in ("database_url", "broker_url")
        }
        for name, url in found.items():
            if not url:
                raise ServicesNotFound(f"THREADMILL_{name.upper()}", str(self.folder.absolute()))
        return self.model_copy(update=found)


def running_services(folder: Path) -> dict[str, str]:
    """The URLs that a running `threadmill dev` wrote into its folder; empty if none runs."""
    try:
        services: dict[str, Any] = json.loads((folder / SERVICES_FILE).read_text())
        os.kill(int(services["pid"]), 0)
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return {name: str(services[name]) for name in ("database_url", "broker_url") if services.get(name)}
