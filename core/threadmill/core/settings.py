"""Everything that can be set, from the environment (`THREADMILL_…`) or from the caller."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError

from threadmill.core.errors import InvalidTenant, ServicesNotFound, SettingsInvalid
from threadmill.core.keys import check_tenant

SERVICES_FILE = "services.json"
# The shard of all tenants that no other has: the ledger at `database_url`.
MAIN_SHARD = ""
# In the environment everything is text: there, "none" stands for None.
_NONE = BeforeValidator(lambda value: None if str(value).lower() == "none" else value)


class Shard(BaseModel):
    """A ledger of its own for some tenants, with workers of its own: what is down there harms nobody else."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")
    database_url: str = Field(min_length=1)
    session_database_url: str = ""
    broker_url: str = Field(default="", description="empty: the fleet's")
    tenants: tuple[str, ...]


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
    shards: tuple[Shard, ...] = Field(
        default=(),
        description='whose ledger is elsewhere: [{"name": "eu", "database_url": "…", "tenants": ["acme"]}]',
    )
    shard: str = Field(
        default=MAIN_SHARD, description="which of the shards is meant, where no tenant says so; empty: none"
    )
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
        except SettingsError as error:  # of the environment; names the field, and its cause may hold the text
            raise SettingsInvalid([f"{error}: is no JSON"]) from None

    def model_post_init(self, _context: object, /) -> None:
        problems = list(self._problems_of_shards())
        if self.heartbeat_interval >= self.heartbeat_timeout:
            problems.append(
                f"heartbeat_interval {self.heartbeat_interval:g} s must be shorter than "
                f"heartbeat_timeout {self.heartbeat_timeout:g} s"
            )
        if problems:
            raise SettingsInvalid(problems)

    def _problems_of_shards(self) -> Iterator[str]:
        for shard in self.shards:
            for tenant in shard.tenants:
                try:
                    check_tenant(tenant)
                except InvalidTenant as error:
                    yield f"shards: {shard.name}: {error}"
        names = [shard.name for shard in self.shards]
        for what, values in (
            ("name", names),
            ("tenant", [tenant for shard in self.shards for tenant in shard.tenants]),
        ):
            if several := [value for value, number in Counter(values).items() if number > 1]:
                yield f"shards: the {what} {several[0]} is there twice"
        urls = Counter([self.database_url, *(shard.database_url for shard in self.shards)])
        if shared := [shard.name for shard in self.shards if urls[shard.database_url] > 1]:
            yield f"shards: {shared[0]} must have a database of its own"
        yield from self._problems_of_shard(self.shard)

    def _problems_of_shard(self, name: str) -> Iterator[str]:
        names = [shard.name for shard in self.shards]
        if name not in (MAIN_SHARD, *names):
            yield f"shard: {name} is none of the shards: {', '.join(names) or 'there are none'}"

    def homes(self) -> dict[str, str]:
        """The shard of each tenant that is not on the main one."""
        return {tenant: shard.name for shard in self.shards for tenant in shard.tenants}

    def for_shard(self, name: str) -> Settings:
        """These settings where this shard is meant. Raises SettingsInvalid where there is no such one."""
        if problems := list(self._problems_of_shard(name)):
            raise SettingsInvalid(problems)
        return self.model_copy(update={"shard": name})

    def for_tenant(self, tenant: str) -> Settings:
        """These settings where the tenant's shard is meant."""
        return self.for_shard(self.homes().get(tenant, MAIN_SHARD))

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
        """These settings for one ledger alone, with both service URLs filled in.

        Where a shard is meant they are its own, and the queue is, too. Raises ServicesNotFound where one is
        neither set nor offered by a running `threadmill dev`.
        """
        if self.shards:
            return self._narrowed().located()
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

    def _narrowed(self) -> Settings:
        """Without the other shards."""
        alone: dict[str, Any] = {"shards": (), "shard": MAIN_SHARD}
        for shard in self.shards:
            if shard.name == self.shard:
                alone |= {
                    "database_url": shard.database_url,
                    "session_database_url": shard.session_database_url,
                    "broker_url": shard.broker_url or self.broker_url,
                    "queue": f"{self.queue}.{shard.name}",  # the shards' bells may go through one Redis
                }
        return self.model_copy(update=alone)


def running_services(folder: Path) -> dict[str, str]:
    """The URLs that a running `threadmill dev` wrote into its folder; empty if none runs."""
    try:
        services: dict[str, Any] = json.loads((folder / SERVICES_FILE).read_text())
        os.kill(int(services["pid"]), 0)
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return {name: str(services[name]) for name in ("database_url", "broker_url") if services.get(name)}
