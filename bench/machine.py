"""On what the figures were measured: without it they mean nothing."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import psycopg

from bench.arena import Arena

PACKAGES = (
    "threadmill",
    "langgraph",
    "langgraph-checkpoint-postgres",
    "celery",
    "kombu",
    "redis",
    "psycopg",
    "psycopg-pool",
    "uvloop",
)
POSTGRES_SETTINGS = (
    "fsync",
    "synchronous_commit",
    "full_page_writes",
    "shared_buffers",
    "max_connections",
    "track_commit_timestamp",
)
REDIS_SETTINGS = ("appendonly", "appendfsync", "maxmemory-policy")


def describe(arena: Arena) -> dict[str, Any]:
    """The machine, the versions and the services' settings, as JSON."""
    with psycopg.connect(arena.database_url) as connection:
        postgres = {name: _setting(connection, name) for name in ("server_version", *POSTGRES_SETTINGS)}
    with arena.connect_redis() as client:
        redis = {"version": client.info("server")["redis_version"]}
        for name in REDIS_SETTINGS:
            redis |= client.config_get(name)
    return {
        "machine": {
            "processor": _processor(),
            "cores": arena.cores,
            "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
            "system": platform.platform(),
            "load_before": round(os.getloadavg()[0], 2),
            "filesystem": _filesystem(arena.folder),
        },
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "postgres": postgres,
        "redis": redis,
        "threadmill": arena.settings("").model_dump(mode="json", include={"concurrency", "pool_size"}),
    }


def _setting(connection: psycopg.Connection[Any], name: str) -> str:
    row = connection.execute("select current_setting(%s)", [name]).fetchone()
    assert row is not None
    return str(row[0])


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _filesystem(folder: Path) -> str:
    """The type of the file system that holds the data: on one in memory, fsync costs nothing."""
    mounts = [m for m in psutil.disk_partitions(all=True) if folder.resolve().is_relative_to(m.mountpoint)]
    return max(mounts, key=lambda mount: len(mount.mountpoint)).fstype if mounts else "unknown"
