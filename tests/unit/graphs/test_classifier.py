"""What each kind of exception means: those of installed libraries as they are, others in their shape."""

from __future__ import annotations

import asyncio
import errno
import json
import socket
import sqlite3
import ssl
import subprocess
import urllib.error
from collections.abc import Callable
from email.message import Message
from enum import Enum
from typing import Any
from unittest.mock import AsyncMock

import httpx
import httpx2
import jsonschema
import jsonschema_rs
import langchain_core.exceptions
import langchain_openai.chat_models.base
import langgraph.errors
import openai
import psycopg
import psycopg_pool
import pydantic
import pytest
import redis
import requests
import sqlalchemy.exc
import urllib3.exceptions
from hypothesis import given
from hypothesis import strategies as st

from threadmill.core import errors
from threadmill.core.errors import InvalidOption
from threadmill.graphs.classifier import Kind, Verdict, checked, classify

REQUEST = httpx.Request("POST", "https://api.example.com/v1/chat")
CLIENT = openai.OpenAI(api_key="none", base_url="https://api.example.com")
REQUEST2 = httpx2.Request("POST", "https://api.example.com/v1/chat")


def made(module: str, *names: str, **attributes: Any) -> Exception:
    """An exception of a library that is not installed. names: its class, then the base classes' names."""
    cls: type[Exception] = Exception
    for name in reversed(names):
        cls = type(name, (cls,), {"__module__": module})
    error = cls("the message")
    vars(error).update(attributes)
    return error


def answered(status: int, body: Any = None, /, **headers: str) -> Exception:
    """What openai's client raises for an answer."""
    headers = {key.replace("_", "-"): value for key, value in headers.items()}
    response = httpx2.Response(status, json={"error": body}, headers=headers, request=REQUEST2)
    return CLIENT._make_status_error_from_response(response)


def anthropic(status: int, kind: str, name: str, **headers: str) -> Exception:
    response = httpx.Response(status, headers=headers, request=REQUEST)
    body = {"type": "error", "error": {"type": kind, "message": "…"}}
    bases = ("APIStatusError", "APIError", "AnthropicError")
    return made(
        "anthropic._exceptions", name, *bases, status_code=status, response=response, body=body, message="…"
    )


def aws(code: str, status: int | None = 400, **headers: str) -> Exception:
    response: dict[str, Any] = {"Error": {"Code": code, "Message": "…"}}
    if status is not None:
        response["ResponseMetadata"] = {"HTTPStatusCode": status, "HTTPHeaders": headers}
    return made("botocore.exceptions", "ClientError", response=response, operation_name="Converse")


class Grpc(Enum):
    """As grpc.StatusCode: its values are pairs of a number and a text."""

    UNAVAILABLE = (14, "unavailable")
    RESOURCE_EXHAUSTED = (8, "resource exhausted")
    INVALID_ARGUMENT = (3, "invalid argument")
    ABORTED = (10, "aborted")


def api_core(name: str, code: int | None, grpc: Grpc | None, **attributes: Any) -> Exception:
    cls = ("GoogleAPICallError", "GoogleAPIError")
    return made(
        "google.api_core.exceptions",
        name,
        *cls,
        code=code,
        grpc_status_code=grpc,
        response=None,
        **attributes,
    )


def rpc(status: Grpc) -> Exception:
    return made("grpc._channel", "_InactiveRpcError", "RpcError", code=lambda: status, details=lambda: "…")


def genai(code: int, status: str, details: Any = None) -> Exception:
    body = {"error": {"code": code, "status": status, "details": details or []}}
    return made("google.genai.errors", "ClientError", "APIError", code=code, status=status, details=body)


def url_error(status: int, **headers: str) -> Exception:
    message = Message()
    for key, value in headers.items():
        message[key.replace("_", "-")] = value
    return urllib.error.HTTPError("https://x", status, "…", message, None)


def requests_error(status: int) -> Exception:
    response = requests.Response()
    response.status_code = status
    return requests.HTTPError(response=response)


def from_(error: BaseException, cause: BaseException) -> BaseException:
    error.__cause__ = cause
    return error


def sql(orig: BaseException, *, lost: bool = False) -> Exception:
    return sqlalchemy.exc.OperationalError("SELECT 1", {}, orig, connection_invalidated=lost)


def invalid_model() -> Exception:
    try:
        pydantic.TypeAdapter(int).validate_python("x")
    except pydantic.ValidationError as error:
        return error
    raise AssertionError


def invalid_json() -> Exception:
    try:
        jsonschema_rs.validate({"type": "string"}, 1)
    except jsonschema_rs.ValidationError as error:
        return error
    raise AssertionError


def httpx_status(status: int, **headers: str) -> Exception:
    response = httpx.Response(status, headers=headers, request=REQUEST)
    return httpx.HTTPStatusError("…", request=REQUEST, response=response)


openai_base = langchain_openai.chat_models.base
RATE = {"code": "rate_limit_exceeded", "type": "requests"}
QUOTA = {"code": "insufficient_quota", "type": "insufficient_quota"}
TOO_LONG = {"code": "context_length_exceeded", "type": "invalid_request_error"}
TPM = {
    "code": "rate_limit_exceeded",
    "type": "tokens",
    "message": "Request too large for gpt on tokens per min",
}
VLLM = {"message": "This model's maximum context length is 4096 tokens.", "type": "internal_error"}
STREAM = {"type": "server_error", "code": None, "message": "…"}

# Each with a few words for the record, and the seconds to wait if the other side named them.
TRANSIENT: list[tuple[Any, ...]] = [
    # Connections and timeouts
    (ConnectionResetError(), "ConnectionResetError"),
    (BrokenPipeError(), "BrokenPipeError"),
    (TimeoutError(), "TimeoutError"),
    (OSError(errno.ETIMEDOUT, "…"), "TimeoutError"),
    (OSError(errno.EHOSTUNREACH, "…"), "EHOSTUNREACH"),
    (OSError("Multiple exceptions: [Errno 111] …, [Errno 111] …"), "no connection"),
    (socket.gaierror(socket.EAI_AGAIN, "…"), "gaierror"),
    (ssl.SSLEOFError(), "SSLEOFError"),
    (asyncio.IncompleteReadError(b"", 4), "IncompleteReadError"),
    (subprocess.TimeoutExpired("x", 3), "TimeoutExpired"),
    (urllib.error.URLError(ConnectionRefusedError()), "URLError"),
    (httpx.ConnectError("…"), "ConnectError"),
    (httpx.ReadTimeout("…"), "ReadTimeout"),
    (httpx.PoolTimeout("…"), "PoolTimeout"),
    (httpx.RemoteProtocolError("…"), "RemoteProtocolError"),
    (httpx2.ConnectTimeout("…"), "ConnectTimeout"),
    (requests.ConnectionError(), "ConnectionError"),
    (requests.ReadTimeout(), "ReadTimeout"),
    (requests.exceptions.ChunkedEncodingError(), "ChunkedEncodingError"),
    (urllib3.exceptions.ProtocolError(), "ProtocolError"),
    (urllib3.exceptions.ReadTimeoutError(None, "/", "…"), "ReadTimeoutError"),  # type: ignore[arg-type]
    (made("aiohttp.client_exceptions", "ClientOSError", "ClientConnectionError"), "ClientOSError"),
    (made("aiohttp.client_exceptions", "ClientPayloadError"), "ClientPayloadError"),
    (redis.ConnectionError(), "ConnectionError"),
    (redis.TimeoutError(), "TimeoutError"),
    (redis.BusyLoadingError(), "BusyLoadingError"),
    (openai.APIConnectionError(request=REQUEST2), "APIConnectionError"),
    (openai.APITimeoutError(REQUEST2), "APITimeoutError"),
    (made("groq", "APITimeoutError", "APIConnectionError"), "APITimeoutError"),
    (made("botocore.exceptions", "ReadTimeoutError", "HTTPClientError"), "ReadTimeoutError"),
    (made("botocore.exceptions", "EndpointConnectionError", "ConnectionError"), "EndpointConnectionError"),
    (openai_base.OpenAITimeoutError(REQUEST2), "OpenAITimeoutError"),
    (langchain_core.exceptions.ModelConnectionError(), "ModelConnectionError"),
    (langgraph.errors.NodeTimeoutError("n", 3, kind="run", run_timeout=2), "NodeTimeoutError"),
    (errors.WaitTimeout("r", "running", 3), "WaitTimeout"),
    # HTTP that may go better
    (httpx_status(500), "HTTP 500"),
    (httpx_status(408), "HTTP 408"),
    (httpx_status(425), "HTTP 425"),
    (httpx_status(503, **{"Retry-After": "3"}), "HTTP 503", 3),
    (requests_error(502), "HTTP 502"),
    (url_error(503, Retry_After="4"), "HTTP 503", 4),
    (answered(500, {"type": "server_error"}), "HTTP 500"),
    (answered(409, {"message": "…"}), "HTTP 409"),
    (made("app", "Conflict", status_code=409, code="resource_locked"), "HTTP 409"),
    (anthropic(529, "overloaded_error", "OverloadedError"), "HTTP 529"),
    (anthropic(200, "overloaded_error", "APIStatusError"), "overloaded_error"),
    (openai.APIError("…", REQUEST2, body=STREAM), "server_error"),
    (made("aiohttp.client_exceptions", "ClientResponseError", status=502), "HTTP 502"),
    (genai(503, "UNAVAILABLE"), "HTTP 503"),
    (api_core("ServiceUnavailable", 503, Grpc.UNAVAILABLE), "gRPC UNAVAILABLE"),
    (api_core("InternalServerError", 500, None), "HTTP 500"),
    (rpc(Grpc.UNAVAILABLE), "gRPC UNAVAILABLE"),
    (rpc(Grpc.ABORTED), "gRPC ABORTED"),
    (aws("ModelStreamErrorException", 424), "modelstreamerrorexception"),
    (aws("internalServerException", None), "internalserverexception"),
    (aws("InternalFailure", 500), "HTTP 500"),
    # Databases of users
    (psycopg.errors.DeadlockDetected(), "SQLSTATE 40P01"),
    (psycopg.errors.SerializationFailure(), "SQLSTATE 40001"),
    (psycopg.errors.AdminShutdown(), "SQLSTATE 57P01"),
    (psycopg.errors.ConnectionFailure(), "SQLSTATE 08006"),
    (psycopg.errors.TooManyConnections(), "SQLSTATE 53300"),
    (psycopg.errors.QueryCanceled(), "SQLSTATE 57014"),
    (psycopg.OperationalError("the connection is closed"), "OperationalError"),
    (psycopg_pool.PoolTimeout(), "PoolTimeout"),
    (made("psycopg2.errors", "X", "OperationalError", pgcode="40P01"), "SQLSTATE 40P01"),
    (made("psycopg2", "OperationalError", "Error", pgcode=None), "OperationalError"),
    (made("asyncpg.exceptions", "CannotConnectNowError", sqlstate="57P03"), "SQLSTATE 57P03"),
    (sql(psycopg.errors.DeadlockDetected()), "SQLSTATE 40P01"),
    (sql(psycopg.OperationalError("server closed the connection")), "OperationalError"),
    (sql(sqlite3.OperationalError(), lost=True), "connection lost"),
    (sqlalchemy.exc.TimeoutError(), "TimeoutError"),
    # Causes
    (from_(RuntimeError(), httpx.ReadTimeout("…")), "caused by ReadTimeout"),
    (
        from_(Exception(), from_(Exception(), httpx_status(503, **{"retry-after": "3"}))),
        "caused by HTTP 503",
        3,
    ),
    (from_(TimeoutError(), asyncio.CancelledError()), "TimeoutError"),
    # Groups
    (ExceptionGroup("g", [httpx_status(429, **{"retry-after": "9"}), TimeoutError()]), "TimeoutError", 9),
    (
        ExceptionGroup("g", [ExceptionGroup("h", [from_(RuntimeError(), TimeoutError())])]),
        "caused by TimeoutError",
    ),
    (from_(RuntimeError(), ExceptionGroup("g", [TimeoutError()])), "caused by TimeoutError"),
]
RATE_LIMITED: list[tuple[Any, ...]] = [
    (answered(429, RATE), "HTTP 429"),
    (answered(429, RATE, retry_after="20"), "HTTP 429", 20),
    (answered(429, RATE, retry_after_ms="250", retry_after="1"), "HTTP 429", 0.25),
    (
        httpx_status(
            429, **{"retry-after": "Sun, 06 Nov 1994 08:50:37 GMT", "date": "Sun, 06 Nov 1994 08:49:37 GMT"}
        ),
        "HTTP 429",
        60,
    ),
    (anthropic(429, "rate_limit_error", "RateLimitError", **{"retry-after": "5"}), "HTTP 429", 5),
    (anthropic(200, "rate_limit_error", "APIStatusError"), "rate_limit_error"),
    (aws("ThrottlingException"), "throttlingexception"),
    (aws("TooManyRequestsException", 429, **{"retry-after": "2"}), "toomanyrequestsexception", 2),
    (aws("throttlingException", None), "throttlingexception"),
    (aws("ModelNotReadyException", 429), "HTTP 429"),
    (api_core("ResourceExhausted", 429, Grpc.RESOURCE_EXHAUSTED), "gRPC RESOURCE_EXHAUSTED"),
    (rpc(Grpc.RESOURCE_EXHAUSTED), "gRPC RESOURCE_EXHAUSTED"),
    (genai(429, "RESOURCE_EXHAUSTED", [{"@type": "RetryInfo", "retryDelay": "34s"}]), "HTTP 429", 34),
    (
        made(
            "cohere.errors", "TooManyRequestsError", "ApiError", status_code=429, headers={"Retry-After": "9"}
        ),
        "HTTP 429",
        9,
    ),
    (
        made(
            "mistralai.models.sdkerror",
            "SDKError",
            "MistralError",
            status_code=429,
            raw_response=httpx.Response(429, headers={"retry-after": "9"}),
        ),
        "HTTP 429",
        9,
    ),
    (
        openai_base.OpenAIRateLimitError("…", response=httpx2.Response(429, request=REQUEST2), body=RATE),
        "HTTP 429",
    ),
    (langchain_core.exceptions.ModelRateLimitError(), "ModelRateLimitError"),
    (
        from_(
            made("langchain_google_genai.chat_models", "ChatGoogleGenerativeAIError"),
            genai(429, "RESOURCE_EXHAUSTED", [{"retryDelay": "30s"}]),
        ),
        "caused by HTTP 429",
        30,
    ),
    (errors.TenantQuotaExceeded("t", 10, 10, 8), "TenantQuotaExceeded", 8),
    # Groups
    (ExceptionGroup("g", [httpx_status(429, **{"retry-after": s}) for s in "394"]), "HTTP 429", 9),
    (ExceptionGroup("g", [errors.LeaseLost("r", 1), httpx_status(429)]), "HTTP 429"),
]
PERMANENT: list[tuple[Any, ...]] = [
    # Refused, whatever the status says
    (answered(429, QUOTA, retry_after="20"), "insufficient_quota"),
    (answered(400, TOO_LONG), "context_length_exceeded"),
    (answered(503, TOO_LONG), "context_length_exceeded"),
    (answered(500, VLLM), "HTTP 500: maximum context length"),
    (answered(429, TPM), "HTTP 429: request too large for"),
    (answered(400, {"code": "content_filter"}), "content_filter"),
    (answered(500, {"innererror": {"code": "ResponsibleAIPolicyViolation"}}), "responsibleaipolicyviolation"),
    (openai.APIError("…", REQUEST2, body=TOO_LONG), "context_length_exceeded"),
    (openai.ContentFilterFinishReasonError(), "ContentFilterFinishReasonError"),
    (openai_base.OpenAIAPIContextOverflowError("…", REQUEST2, body=None), "ContextOverflowError"),
    (made("litellm.exceptions", "ContextWindowExceededError", status_code=500), "ContextWindowExceededError"),
    # Other 4xx
    (httpx_status(400), "HTTP 400"),
    (httpx_status(409), "HTTP 409"),
    (made("app", "Conflict", status_code=409, code="account_blocked"), "HTTP 409"),
    (httpx_status(404, **{"Retry-After": "3"}), "HTTP 404"),
    (answered(401, {"code": "invalid_api_key"}), "HTTP 401"),
    (answered(422, None), "HTTP 422"),
    (answered(413, TPM), "HTTP 413"),
    (aws("ValidationException", 400), "HTTP 400"),
    (api_core("InvalidArgument", 400, Grpc.INVALID_ARGUMENT), "gRPC INVALID_ARGUMENT"),
    (url_error(403), "HTTP 403"),
    # Validation and databases
    (invalid_model(), "ValidationError"),
    (jsonschema.ValidationError("…"), "ValidationError"),
    (invalid_json(), "ValidationError"),
    (langchain_core.exceptions.OutputParserException("…"), "OutputParserException"),
    (psycopg.errors.UniqueViolation(), "SQLSTATE 23505"),
    (psycopg.errors.DiskFull(), "SQLSTATE 53100"),
    (sql(psycopg.errors.UndefinedTable()), "SQLSTATE 42P01"),
    (redis.AuthenticationError(), "AuthenticationError"),
    (httpx.UnsupportedProtocol("…"), "UnsupportedProtocol"),
    (requests.exceptions.InvalidURL(), "InvalidURL"),
    # LangGraph's own
    (langgraph.errors.GraphRecursionError(), "GraphRecursionError"),
    (langgraph.errors.InvalidUpdateError(), "InvalidUpdateError"),
    (langgraph.errors.UnknownInterruptError("…", reason="empty_map"), "UnknownInterruptError"),
    (langgraph.errors.EmptyInputError(), "EmptyInputError"),
    (from_(langgraph.errors.NodeCancelledError("n"), asyncio.CancelledError()), "NodeCancelledError"),
    # Programming errors, and files
    (FileNotFoundError(errno.ENOENT, "…"), "ENOENT"),
    (PermissionError(errno.EACCES, "…"), "EACCES"),
    (errors.InvalidTenant("x y"), "InvalidTenant"),
    (errors.RunTimeout("timeout", 3), "RunTimeout"),
    # Not known
    (Exception("HTTP 503, connection reset, try again"), "Exception is not known"),
    (RuntimeError(), "RuntimeError is not known"),
    (OSError(), "OSError is not known"),
    (SystemExit(503), "SystemExit is not known"),
    (sql(sqlite3.OperationalError("no such table")), "OperationalError is not known"),
    (made("smtp", "SMTPResponseError", code=550), "SMTPResponseError is not known"),
    (made("app", "Odd", status_code="503", status=True, code=None, body=3), "Odd is not known"),
    (openai.APIError("…", REQUEST2, body=None), "APIError is not known"),
    # Causes
    (from_(ValueError(), httpx.ReadTimeout("…")), "ValueError"),
    (from_(RuntimeError(), httpx_status(400)), "caused by HTTP 400"),
    (from_(RuntimeError(), asyncio.CancelledError()), "RuntimeError is not known"),
    # Groups
    (ExceptionGroup("g", [TimeoutError(), ValueError(), httpx_status(429)]), "ValueError"),
    (ExceptionGroup("g", [TimeoutError(), RuntimeError()]), "RuntimeError is not known"),
]
INFRASTRUCTURE: list[tuple[Any, ...]] = [
    (errors.LeaseLost("r", 1), "LeaseLost"),
    (errors.DatabaseUnavailable("db:5432", "…"), "DatabaseUnavailable"),
    (errors.BrokerUnavailable("redis", "…"), "BrokerUnavailable"),
    (errors.DependencyUnavailable("openai", 12.5), "DependencyUnavailable", 12.5),
    (errors.DependencyUnavailable("openai", 1e9), "DependencyUnavailable", 86_400),
    (errors.DependencyUnavailable("openai", -0.01), "DependencyUnavailable", 0),
    (langgraph.errors.GraphDrained(), "GraphDrained"),
    (asyncio.CancelledError(), "cancelled"),
    # Causes
    (from_(RuntimeError(), errors.DependencyUnavailable("x", 3)), "caused by DependencyUnavailable", 3),
    (from_(RuntimeError(), errors.LeaseLost("r", 1)), "caused by LeaseLost"),
    # Groups
    (BaseExceptionGroup("g", [asyncio.CancelledError()]), "cancelled"),
]
# Known by their classes alone: mistakes of whoever wrote the node.
PROGRAMMING = (
    TypeError(), KeyError(), IndexError(), AttributeError(), AssertionError(), ImportError(), ValueError(),
    NameError(), ZeroDivisionError(), NotImplementedError(), RecursionError(), SyntaxError(),
    json.JSONDecodeError("…", "", 0), ssl.SSLCertVerificationError(),
)  # fmt: skip
BY_KIND: dict[Kind, list[tuple[Any, ...]]] = {
    "transient": TRANSIENT,
    "rate_limited": RATE_LIMITED,
    "permanent": PERMANENT + [(error, type(error).__name__) for error in PROGRAMMING],
    "infrastructure": INFRASTRUCTURE,
}
TABLE = [
    pytest.param(error, Verdict(kind, seconds[0] if seconds else None, why), id=f"{kind}-{why}")
    for kind, cases in BY_KIND.items()
    for error, why, *seconds in cases
]


@pytest.mark.parametrize(("error", "verdict"), TABLE)
def test_each_exception_has_its_verdict(error: Any, verdict: Verdict) -> None:
    assert classify(error) == verdict


def test_what_was_being_handled_is_not_the_cause() -> None:
    with pytest.raises(RuntimeError) as caught:
        try:
            raise TimeoutError
        except TimeoutError:
            raise RuntimeError  # noqa: B904
    assert caught.value.__context__ is not None
    assert classify(caught.value).kind == "permanent"


async def test_a_host_of_several_addresses_that_all_refuse_is_a_connection_error(
    unused_tcp_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    addresses = [
        (socket.AF_INET, socket.SOCK_STREAM, 0, "", (host, unused_tcp_port))
        for host in ("127.0.0.1", "127.0.0.2")
    ]
    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", AsyncMock(return_value=addresses))
    with pytest.raises(OSError, match="Multiple exceptions") as caught:
        await asyncio.open_connection("somewhere", unused_tcp_port)
    assert not isinstance(caught.value, ConnectionError)
    assert classify(caught.value).kind == "transient"


def test_a_certificate_that_does_not_hold_is_permanent_where_it_can_be_told() -> None:
    assert classify(from_(RuntimeError(), ssl.SSLCertVerificationError())).kind == "permanent"
    # httpx says no more than that there is no connection.
    assert classify(httpx.ConnectError("[SSL: CERTIFICATE_VERIFY_FAILED]")).kind == "transient"


def rings() -> list[BaseException]:
    """Exceptions that are causes of themselves, which no traceback shows but user code can make."""
    one, two = RuntimeError(), RuntimeError()
    one.__cause__, two.__cause__ = two, one
    member = RuntimeError()
    group = ExceptionGroup("g", [member])
    member.__cause__ = group
    return [one, group, member]


@pytest.mark.parametrize("error", rings(), ids=["chain", "group", "member"])
def test_a_ring_of_causes_ends(error: BaseException) -> None:
    assert classify(error).kind == "permanent"


class Hostile(Exception):
    """All that can be read of it raises."""

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("__"):
            return super().__getattribute__(name)
        raise RuntimeError(name)

    def __str__(self) -> str:
        raise RuntimeError


def test_an_exception_that_cannot_be_read_is_not_known() -> None:
    assert classify(Hostile()) == Verdict("permanent", why="Hostile is not known")


ANYTHING: st.SearchStrategy[Any] = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.lists(st.text()), st.binary(),
    st.recursive(st.text(), lambda inner: st.dictionaries(st.text(), inner)), st.builds(object),
)  # fmt: skip
ATTRIBUTES = (
    "status_code", "status", "http_status", "code", "type", "body", "response", "headers", "raw_response",
    "retry_after", "details", "error_details", "sqlstate", "pgcode", "orig", "grpc_status_code",
)  # fmt: skip


@given(
    module=st.sampled_from(["google.x", "grpc", "psycopg", "app"]),
    attributes=st.dictionaries(st.sampled_from(ATTRIBUTES), ANYTHING),
)
def test_whatever_an_exception_carries_there_is_a_verdict(module: str, attributes: dict[str, Any]) -> None:
    verdict = classify(made(module, "OperationalError", **attributes))
    assert isinstance(verdict, Verdict)


def test_a_verdict_says_nothing_of_the_message() -> None:
    for error, *_ in (case for cases in BY_KIND.values() for case in cases):
        assert "the message" not in classify(error).why


@pytest.mark.parametrize(
    "verdict",
    [
        lambda: Verdict("perhaps"),  # type: ignore[arg-type]
        lambda: Verdict(["transient"]),  # type: ignore[arg-type]
        lambda: Verdict("transient", -1),
        lambda: Verdict("transient", float("nan")),
        lambda: Verdict("transient", 100_000),
        lambda: Verdict("transient", "3"),  # type: ignore[arg-type]
        lambda: Verdict("transient", True),
        lambda: Verdict("transient", None, 3),  # type: ignore[arg-type]
    ],
)
def test_an_impossible_verdict_is_refused(verdict: Callable[[], Verdict]) -> None:
    with pytest.raises(InvalidOption):
        verdict()


def test_a_kind_alone_is_completed_with_the_time_to_wait() -> None:
    limited = made("app", "Busy", retry_after=4)
    assert checked(lambda _: "rate_limited", "g")(limited) == Verdict("rate_limited", 4, "Busy")
    assert checked(lambda _: "permanent", "g")(limited) == Verdict("permanent", None, "Busy")
