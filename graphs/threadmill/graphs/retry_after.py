"""How long the other side asked to wait before the next try."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from datetime import timedelta
from email.utils import mktime_tz, parsedate_tz

from threadmill.graphs.attributes import entries, item, read
from threadmill.graphs.verdict import bounded

# What RFC 9110 allows, and the decimals that some providers add.
_SECONDS = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*")
_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)s")


def seconds_said(error: BaseException) -> float | None:
    """The seconds, 0 to a day, that the answer behind this exception asked to wait; None if it did not."""
    for headers in _headers(error):
        if (said := of_headers(headers)) is not None:
            return said
    for answer in (_of_attribute(read(error, "retry_after")), _of_retry_info(error)):
        if answer is not None:
            return answer
    return None


def of_headers(headers: Mapping[str, str]) -> float | None:
    """The seconds that `retry-after-ms` or `Retry-After` names; the keys are lower-case.

    Retry-After is a number of seconds or a date (RFC 9110, 10.2.3). A date is compared with the answer's
    own `Date`, so that a difference between the server's clock and this machine's does no harm.
    """
    milliseconds = _number(headers.get("retry-after-ms", ""))
    if milliseconds is not None:
        return bounded(milliseconds / 1000)
    text = headers.get("retry-after", "")
    seconds = _number(text)
    if seconds is not None:
        return bounded(seconds)
    date = _timestamp(text)
    if date is None:
        return None
    now = _timestamp(headers.get("date", ""))
    return bounded(date - (time.time() if now is None else now))


def _headers(error: BaseException) -> list[dict[str, str]]:
    """Where clients keep the headers of an answer: on the exception, its response, or in AWS's metadata."""
    response = read(error, "response")
    kept = (
        read(response, "headers"),
        read(error, "headers"),
        read(read(error, "raw_response"), "headers"),
        item(response, "ResponseMetadata", "HTTPHeaders"),
    )
    return [
        {str(key).lower(): value for key, value in entries(headers) if isinstance(value, str)}
        for headers in kept
        if headers is not None
    ]


def _number(text: str) -> float | None:
    match = _SECONDS.fullmatch(text)
    return float(match[1]) if match else None


def _timestamp(text: str) -> float | None:
    try:
        date = parsedate_tz(text)
        return None if date is None else float(mktime_tz(date))
    # By turns, for what looks like a date and is none, or lies beyond all calendars.
    except (ValueError, OverflowError, TypeError, IndexError):
        return None


def _of_attribute(value: object) -> float | None:
    if isinstance(value, timedelta):
        return bounded(value.total_seconds())
    if isinstance(value, str):
        return bounded(_number(value))
    return bounded(value) if isinstance(value, int | float) and value >= 0 else None


def _of_retry_info(error: BaseException) -> float | None:
    """Google's RetryInfo: a message among the details of google.api_core, JSON in those of google.genai."""
    details = read(error, "details")
    found = item(details, "error", "details") or item(details, "details")
    for detail in (*_list(read(error, "error_details")), *_list(found)):
        duration = read(detail, "retry_delay")
        seconds, nanos = read(duration, "seconds"), read(duration, "nanos")
        if isinstance(seconds, int) and isinstance(nanos, int):
            return bounded(seconds + nanos / 1e9)
        text = item(detail, "retryDelay")
        if isinstance(text, str) and (match := _DURATION.fullmatch(text)):
            return bounded(float(match[1]))
    return None


def _list(value: object) -> list[object]:
    return list(value) if isinstance(value, list | tuple) else []
