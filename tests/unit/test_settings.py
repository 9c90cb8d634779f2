"""Settings come from the environment, are checked, and find the services of a running `threadmill dev`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import traceback
from pathlib import Path

import pytest
from pydantic import ValidationError

from threadmill.core.errors import ServicesNotFound, SettingsInvalid
from threadmill.core.settings import Settings, running_services

OURS = "postgresql://app:secret@db:5432/app"


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.startswith("THREADMILL_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def offer(folder: Path, **values: object) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "services.json").write_text(json.dumps(values))


def test_every_setting_is_taken_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THREADMILL_DATABASE_URL", OURS)
    monkeypatch.setenv("THREADMILL_MAX_INPUT_BYTES", "17")
    monkeypatch.setenv("THREADMILL_GRAPHS_FILE", "elsewhere/langgraph.json")

    settings = Settings()

    assert (settings.database_url, settings.max_input_bytes) == (OURS, 17)
    assert settings.graphs_file == Path("elsewhere/langgraph.json")


def test_what_the_caller_gives_goes_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THREADMILL_QUEUE", "theirs")

    assert Settings(queue="ours").queue == "ours"


def test_settings_do_not_change() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Settings().queue = "other"  # type: ignore[misc]


def test_every_impossible_value_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THREADMILL_CONCURRENCY", "none")
    monkeypatch.setenv("THREADMILL_POOL_SIZE", "1")

    with pytest.raises(SettingsInvalid) as raised:
        Settings(log_level="LOUD")

    names = {problem.partition(":")[0] for problem in raised.value.problems}
    assert names == {"log_level", "concurrency", "pool_size"}


@pytest.mark.parametrize("name", ["run_ttl", "max_pending", "max_pending_per_tenant"])
def test_a_bound_is_taken_away_by_the_word_none(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    for word in ("none", "None"):
        monkeypatch.setenv(f"THREADMILL_{name.upper()}", word)
        assert getattr(Settings(), name) is None
    monkeypatch.setenv(f"THREADMILL_{name.upper()}", "7")
    assert getattr(Settings(), name) == 7
    monkeypatch.setenv(f"THREADMILL_{name.upper()}", "0")
    with pytest.raises(SettingsInvalid, match=name):
        Settings()


def test_a_heartbeat_must_fit_into_its_timeout() -> None:
    with pytest.raises(SettingsInvalid, match="heartbeat_interval 6 s must be shorter than"):
        Settings(heartbeat_interval=6, heartbeat_timeout=6)


def test_the_four_mebibytes_and_five_seconds_of_the_promises_are_the_defaults() -> None:
    settings = Settings()

    assert settings.max_input_bytes == 4 * 1024 * 1024
    assert settings.max_output_bytes == 1024 * 1024
    assert settings.output_ttl == 24 * 3600
    assert settings.connect_timeout == 5


def test_the_services_of_a_running_dev_stand_in_for_what_is_not_set(tmp_path: Path) -> None:
    offer(
        tmp_path / ".threadmill", pid=os.getpid(), database_url="postgresql://dev", broker_url="redis://dev"
    )

    both = Settings().located()
    own_database = Settings(database_url=OURS).located()

    assert (both.database_url, both.broker_url) == ("postgresql://dev", "redis://dev")
    assert (own_database.database_url, own_database.broker_url) == (OURS, "redis://dev")


def test_services_that_are_set_need_no_dev() -> None:
    settings = Settings(database_url=OURS, broker_url="redis://ours")

    assert settings.located() is settings


def test_a_service_that_nobody_offers_is_named_with_its_variable(tmp_path: Path) -> None:
    with pytest.raises(ServicesNotFound, match="THREADMILL_DATABASE_URL is not set") as raised:
        Settings().located()
    assert raised.value.folder == str(tmp_path / ".threadmill")

    with pytest.raises(ServicesNotFound, match="THREADMILL_BROKER_URL is not set"):
        Settings(database_url=OURS).located()


def test_what_a_dev_left_behind_that_was_killed_is_not_believed(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-S", "-c", ""])
    ended.wait()
    offer(tmp_path, pid=ended.pid, database_url="postgresql://dev", broker_url="redis://dev")

    assert running_services(tmp_path) == {}


@pytest.mark.parametrize("content", ["", "{", "[]", '"x"', "{}", '{"pid": null}', '{"pid": "x"}'])
def test_a_torn_services_file_offers_nothing(tmp_path: Path, content: str) -> None:
    (tmp_path / "services.json").write_text(content)

    assert running_services(tmp_path) == {}


def test_what_needs_a_session_goes_past_the_pooler() -> None:
    settings = Settings(
        database_url="postgresql://app@pooler/app", database_pooler="transaction", session_database_url=OURS
    )

    past = settings.for_sessions()

    assert (past.database_url, past.database_pooler) == (OURS, "none")
    assert past.for_sessions() == past


def test_without_a_pooler_there_is_one_way_to_the_database() -> None:
    settings = Settings(database_url=OURS)

    assert settings.for_sessions() is settings


def test_behind_a_pooler_the_other_way_must_be_set() -> None:
    settings = Settings(database_url=OURS, database_pooler="transaction")

    with pytest.raises(SettingsInvalid, match="session_database_url"):
        settings.for_sessions()


EU = {"name": "eu", "database_url": "postgresql://app@eu/app", "tenants": ["acme", "globex"]}
US = {
    "name": "us",
    "database_url": "postgresql://app@us/app",
    "tenants": ["initech"],
    "broker_url": "redis://us",
}


def fleet(**values: object) -> Settings:
    return Settings(**{"database_url": OURS, "broker_url": "redis://ours", "shards": [EU, US], **values})


def test_a_tenant_is_on_its_shard_or_on_the_main_one() -> None:
    settings = fleet()

    tenants = ("acme", "globex", "initech", "hooli")
    urls = [settings.for_tenant(tenant).located().database_url for tenant in tenants]

    assert urls == [EU["database_url"], EU["database_url"], US["database_url"], OURS]


def test_the_shards_are_taken_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THREADMILL_SHARDS", json.dumps([EU, US]))
    monkeypatch.setenv("THREADMILL_SHARD", "us")

    settings = Settings(database_url=OURS, broker_url="redis://ours").located()

    assert (settings.database_url, settings.broker_url) == (US["database_url"], "redis://us")


def test_a_shard_has_a_queue_of_its_own_and_knows_of_no_other() -> None:
    settings = fleet(queue="bells", shard="eu").located()

    assert (settings.queue, settings.broker_url) == ("bells.eu", "redis://ours")
    assert settings.located() is settings
    assert settings.for_tenant("initech").located().database_url == EU["database_url"]


def test_the_settings_of_one_shard_stay_so_where_the_environment_has_them_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = fleet(shard="eu").located()
    monkeypatch.setenv("THREADMILL_SHARDS", json.dumps([EU, US]))
    monkeypatch.setenv("THREADMILL_SHARD", "eu")

    # What a worker hands to the process of its quarantine.
    handed_down = Settings(**json.loads(json.dumps(settings.model_dump(mode="json"))))

    assert handed_down.located() == settings


def test_past_the_pooler_of_a_shard_there_is_its_own_database() -> None:
    eu = {**EU, "session_database_url": "postgresql://app@eu-direct/app"}
    settings = fleet(shards=[eu, US], database_pooler="transaction", session_database_url=OURS)

    assert settings.for_shard("eu").located().for_sessions().database_url == eu["session_database_url"]
    with pytest.raises(SettingsInvalid, match="session_database_url"):
        settings.for_shard("us").located().for_sessions()


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"shard": "asia"}, "shard: asia is none of the shards: eu, us"),
        ({"shards": [], "shard": "eu"}, "there are none"),
        ({"shards": [EU, {**US, "name": "eu"}]}, "the name eu is there twice"),
        ({"shards": [EU, {**US, "tenants": ["acme"]}]}, "the tenant acme is there twice"),
        ({"shards": [EU, {**US, "database_url": EU["database_url"]}]}, "eu must have a database of its own"),
        ({"shards": [{**EU, "database_url": OURS}]}, "eu must have a database of its own"),
        ({"shards": [{**EU, "tenants": ["a:b"]}]}, "shards: eu: tenant"),
        ({"shards": [{**EU, "name": "e u"}]}, "shards.0.name"),
        ({"shards": [{**EU, "database_uri": "x"}]}, "shards.0.database_uri"),
        ({"shards": [{"name": "eu", "tenants": []}]}, "shards.0.database_url"),
    ],
)
def test_shards_that_cannot_be_are_named(values: dict[str, object], problem: str) -> None:
    with pytest.raises(SettingsInvalid) as raised:
        fleet(**values)
    assert problem in str(raised.value)


def test_a_shard_that_there_is_not_is_not_taken_for_the_main_one() -> None:
    with pytest.raises(SettingsInvalid, match="asia is none of the shards: eu, us"):
        fleet().for_shard("asia")


def test_what_is_wrong_with_the_shards_does_not_show_their_passwords(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THREADMILL_SHARDS", '[{"database_url": "postgresql://u:hunter2@db/x"')
    with pytest.raises(SettingsInvalid, match=r"shards.*no JSON") as torn:
        Settings()
    monkeypatch.setenv("THREADMILL_SHARDS", '[{"database_url": "postgresql://u:hunter2@db/x"}]')
    with pytest.raises(SettingsInvalid, match=r"shards\.0\.name") as short:
        Settings()
    for error in (torn.value, short.value):
        assert "hunter2" not in "".join(traceback.format_exception(error))
