"""The service that the demo's graph depends on, called over HTTP."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import httpx

from threadmill.cli.catalogue_service import CatalogueService


def test_it_says_where_a_module_is_documented() -> None:
    with CatalogueService(up_for=10, outage=1) as catalogue:
        response = httpx.get(f"{catalogue.url}/modules/urllib.parse", trust_env=False)

    assert response.status_code == 200
    assert response.json() == {"documentation": "https://docs.python.org/3/library/urllib.parse.html"}


def test_it_refuses_everything_for_a_while_once() -> None:
    with CatalogueService(up_for=2, outage=0.2) as catalogue, httpx.Client(trust_env=False) as client:
        url = f"{catalogue.url}/modules/csv"
        assert [client.get(url).status_code for _ in range(4)] == [200, 200, 503, 503]
        assert catalogue.state()[:2] == (2, 2)
        assert catalogue.state().down_for > 0

        while client.get(url).status_code == 503:
            pass
        assert [client.get(url).status_code for _ in range(3)] == [200] * 3
        assert catalogue.state().down_for == 0


def test_it_counts_right_when_many_call_at_once() -> None:
    with CatalogueService(up_for=20, outage=60) as catalogue, ThreadPoolExecutor(16) as callers:
        url = f"{catalogue.url}/modules/csv"
        statuses = [
            *callers.map(lambda _: httpx.get(url, trust_env=False, verify=False).status_code, range(50))
        ]

    assert sorted(statuses) == [200] * 20 + [503] * 30


def test_it_is_gone_when_the_context_is_left() -> None:
    with CatalogueService(up_for=1, outage=1) as catalogue:
        pass
    try:
        httpx.get(catalogue.url, trust_env=False)
    except httpx.ConnectError:
        return
    raise AssertionError("it still answers")
