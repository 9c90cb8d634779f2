"""How long the other side asked to wait, in all the ways in which that is said."""

from __future__ import annotations

import math
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import httpx
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from threadmill.graphs.retry_after import of_headers, seconds_said
from threadmill.graphs.verdict import MAX_RETRY_AFTER

DAY = MAX_RETRY_AFTER


class Said(Exception):
    """An exception that carries what the test gives it."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__()
        vars(self).update(attributes)


@given(st.integers(min_value=0, max_value=10**12))
def test_seconds_are_taken_as_they_are_up_to_a_day(seconds: int) -> None:
    assert of_headers({"retry-after": str(seconds)}) == min(seconds, DAY)


@given(st.floats(min_value=0, max_value=DAY))
def test_milliseconds_come_first(seconds: float) -> None:
    said = of_headers({"retry-after-ms": f"{seconds * 1000:.3f}", "retry-after": "1"})
    assert said == pytest.approx(seconds, abs=1e-5)


MOMENTS = st.datetimes(datetime(1971, 1, 1), datetime(9000, 1, 1)).map(lambda at: at.replace(tzinfo=UTC))


@given(sent=MOMENTS, wait=st.timedeltas(timedelta(days=-3), timedelta(days=3)))
def test_a_date_counts_from_the_date_of_the_answer_and_not_from_this_clock(
    sent: datetime, wait: timedelta
) -> None:
    sent, until = sent.replace(microsecond=0), (sent + wait).replace(microsecond=0)
    headers = {"retry-after": format_datetime(until, usegmt=True), "date": format_datetime(sent, usegmt=True)}
    assert of_headers(headers) == min(max((until - sent).total_seconds(), 0), DAY)


@pytest.mark.parametrize("date", [{}, {"date": "yesterday"}])
def test_a_date_without_one_of_the_answer_counts_from_now(
    date: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "time", lambda: 784111777.0)
    assert of_headers({"retry-after": "Sun, 06 Nov 1994 08:49:47 GMT", **date}) == 10


# The three forms of a date that RFC 9110 (5.6.7) has a recipient understand.
@pytest.mark.parametrize(
    "date",
    ["Sun, 06 Nov 1994 08:49:47 GMT", "Sunday, 06-Nov-94 08:49:47 GMT", "Sun Nov  6 08:49:47 1994"],
)
def test_each_form_of_a_date_is_read(date: str) -> None:
    assert of_headers({"retry-after": date, "date": "Sun, 06 Nov 1994 08:49:37 GMT"}) == 10


NONSENSE = [
    "",
    "-1",
    "+1",
    "1e3",
    "nan",
    "inf",
    "1_000",
    "٣",
    "soon",
    "1,5",
    "0x10",
    "Sun, 06 Nov",
]


@pytest.mark.parametrize("text", NONSENSE)
def test_nonsense_says_nothing(text: str) -> None:
    assert of_headers({"retry-after": text}) is None
    assert of_headers({"retry-after-ms": text}) is None


@given(st.dictionaries(st.sampled_from(["retry-after", "retry-after-ms", "date"]), st.text(), max_size=3))
@example({"retry-after": "9" * 400})
@example({"retry-after": "Mon, 01 Jan 99999999999 00:00:00 GMT"})
@example({"retry-after": "1 Jan 0000 00:00:00 +99999999"})
def test_whatever_a_server_says_is_some_time_of_up_to_a_day_or_nothing(headers: dict[str, str]) -> None:
    said = of_headers(headers)
    assert said is None or 0 <= said <= DAY


class Duration:
    """Protobuf's."""

    def __init__(self, seconds: int, nanos: int) -> None:
        self.seconds, self.nanos = seconds, nanos


GENAI = {
    "error": {"code": 429, "details": [{"@type": "Help"}, {"@type": "RetryInfo", "retryDelay": "34.5s"}]}
}
PLACES = {
    "a response's headers": (Said(response=httpx.Response(429, headers={"Retry-After": "7"})), 7),
    "a raw response's headers": (Said(raw_response=httpx.Response(429, headers={"retry-after": "7"})), 7),
    "headers of its own": (Said(headers={"RETRY-AFTER": "7"}), 7),
    "AWS's metadata": (Said(response={"ResponseMetadata": {"HTTPHeaders": {"retry-after": "7"}}}), 7),
    "a number": (Said(retry_after=2.5), 2.5),
    "a string": (Said(retry_after="2.5"), 2.5),
    "a timedelta": (Said(retry_after=timedelta(minutes=1)), 60),
    "the headers before the attribute": (Said(retry_after=1, headers={"retry-after": "7"}), 7),
    "the attribute where the headers are silent": (Said(retry_after=1, headers={"server": "x"}), 1),
    "google.api_core": (Said(error_details=[object(), Said(retry_delay=Duration(3, 500_000_000))]), 3.5),
    "google.genai": (Said(details=GENAI), 34.5),
    "google.genai, streamed": (Said(details=GENAI["error"]), 34.5),
    "years": (Said(retry_after=10**9), DAY),
    "a negative number": (Said(retry_after=-1), None),
    "no number": (Said(retry_after=math.nan), None),
    "a flag": (Said(retry_after=True), None),
    "an object": (Said(retry_after=object(), headers=object(), response=object(), details=[None]), None),
    "bytes": (Said(headers={b"retry-after": b"7", "retry-after": b"7"}), None),
    "nothing": (Exception(), None),
}


@pytest.mark.parametrize(("error", "seconds"), PLACES.values(), ids=list(PLACES))
def test_it_is_found_wherever_a_client_keeps_it(error: Exception, seconds: float | None) -> None:
    assert seconds_said(error) == seconds
