"""The form of the attack, for every test here."""

from __future__ import annotations

import pytest
from tests.chaos.form import Form, form_of


@pytest.fixture(scope="session")
def form(request: pytest.FixtureRequest) -> Form:
    return form_of(request.config)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What runs for minutes on purpose is not stopped as one that hangs."""
    form = form_of(config)
    for item in items:
        if item.get_closest_marker("chaos"):
            item.add_marker(pytest.mark.timeout(form.seconds + (900 if form.long else 150)))
