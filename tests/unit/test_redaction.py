"""Which texts are secrets and which are not, and that finding them out takes no time to speak of.

The keys are of the right form and belong to nobody. They are put together here so that no scanner takes this
file for a leak.
"""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from threadmill.workers.redaction import REDACTED, redact

ALNUM = "aB3dE6gH9jK2mN5pQ8sT1vW4yZ7bC0fG3hJ6lM9"
HEX = "0123456789abcdef" * 2
AWS = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
AZURE = "aB3/" * 21 + "aB=="

KEYS = {
    "openai": "sk" + "-" + ALNUM,
    "openai project": "sk" + "-proj-" + ALNUM + "_T3-" + ALNUM,
    "openai service account": "sk" + "-svcacct-" + ALNUM,
    "anthropic": "sk" + "-ant-api03-" + ALNUM + "-_AA",
    "openrouter": "sk" + "-or-v1-" + HEX * 2,
    "aws id": "AKIA" + "IOSFODNN7EXAMPLE",
    "aws session id": "ASIA" + "IOSFODNN7EXAMPLE",
    "google": "AIza" + ALNUM[:35],
    "google oauth": "ya29." + ALNUM,
    "github": "ghp" + "_" + ALNUM[:36],
    "github oauth": "gho" + "_" + ALNUM[:36],
    "github server": "ghs" + "_" + ALNUM[:36],
    "github fine-grained": "github" + "_pat_" + ALNUM + "_" + ALNUM,
    "gitlab": "glpat" + "-" + ALNUM[:20],
    "slack bot": "xoxb" + "-123456789012-123456789012-" + ALNUM[:24],
    "slack user": "xoxp" + "-123456789012-" + ALNUM[:24],
    "stripe": "sk" + "_live_" + ALNUM[:24],
    "stripe restricted": "rk" + "_live_" + ALNUM[:24],
    "hugging face": "hf" + "_" + ALNUM[:34],
    "sendgrid": "SG" + "." + ALNUM[:22] + "." + ALNUM,
    "twilio": "SK" + HEX,
    "npm": "npm" + "_" + ALNUM[:36],
    "pypi": "pypi" + "-AgEIcHlwaS5vcmc" + ALNUM,
    "groq": "gsk" + "_" + ALNUM,
    "jwt": "eyJ" + "hbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTYifQ." + ALNUM,
}
# How a key stands in an error's text.
PLACES = [
    "{}",
    "Incorrect API key provided: {}. You can find yours on the page",
    "call('{}', n=1)",
    '{{"error": {{"key": "{}"}}}}',
    "first line\\n{}\\nlast line",
    "https://example.org/v1?x=1&y={}&z=2",
    "https://example.org/v1?next=a%3D{}",
    "({})",
]
# Each with the part that must be gone.
NAMED = [
    (f"aws_secret_access_key = {AWS}", AWS),
    (f"AWS_SECRET_ACCESS_KEY={AWS}", AWS),
    (f'{{"SecretAccessKey": "{AWS}"}}', AWS),
    (f"the AWS secret {AWS} was refused", AWS),
    (f"AccountName=x;AccountKey={AZURE};EndpointSuffix=core.windows.net", AZURE),
    (f"the storage key {AZURE} was refused", AZURE),
    (f"MISTRAL_API_KEY={ALNUM[:32]}", ALNUM[:32]),
    (f"https://api.example.org/v1?key={ALNUM}&q=1", ALNUM),
    (f"Authorization: Bearer {ALNUM}", ALNUM),
    ("Authorization: Basic am9lOmh1bnRlcjI=", "am9lOmh1bnRlcjI="),
    (f"{{'authorization': 'Bearer {ALNUM}', 'host': 'h'}}", ALNUM),
    (f"[(b'authorization', b'Bearer {ALNUM}')]", ALNUM),
    (f"Headers([('x-api-key', '{HEX}')])", HEX),
    (f'curl -H "api-key: {HEX}" https://h', HEX),
    (f"bearer {ALNUM} expired", ALNUM),
    ("Cookie: session=hunter2; theme=dark", "hunter2"),
    ("postgresql://app:hunter2@db:5432/mill", "hunter2"),
    ("redis://:hunter2@cache:6379/0", "hunter2"),
    ("amqp://app:p%40ss@broker//", "p%40ss"),
    ("postgresql://app:p@ss@db/mill", "p@ss"),
    ("postgresql://app:hun/ter2@db/mill", "ter2"),
    ("host=db user=app password=hunter2 dbname=mill", "hunter2"),
    ("host=db password='hunter two' dbname=mill", "hunter two"),
    ("Server=db;Uid=app;Pwd=hunter,2;Encrypt=yes", "hunter,2"),
    ("DB_PASSWORD=supersecret", "supersecret"),
    ("Client(api_key='hunter2', timeout=3)", "hunter2"),
    ('Client(password="it\'s hunter2")', "hunter2"),
    ('{"password": "hun\\"ter2", "user": "joe"}', "ter2"),
    ('{\\"password\\": \\"hun\\\\\\"ter2\\", \\"user\\": 1}', "ter2"),
    ('password = """hunter2\nhunter3"""', "hunter3"),
    ('{"token": "hunter2', "hunter2"),
    ("https://h/cb?api_key=hunter2&x=1", "hunter2"),
    ("https://h/cb?access_token=hunter2", "hunter2"),
    ("client_secret=hunter2", "hunter2"),
    ("{'clientSecret': 'hunter2'}", "hunter2"),
    ("b'password': b'hunter2'", "hunter2"),
    ("token%3Dhunter2", "hunter2"),
    ("password: hunter2", "hunter2"),
    ("password: str = 'hunter2'", "hunter2"),
    ("database:\n  password: hunter\n  port: 1", "hunter\n"),
    ("key=api_key=hunter2", "hunter2"),
    ("pass=3,password=hunter2", "hunter2"),
    ('{"key": "host=db password=hunter2"}', "hunter2"),
    ("password=read(token='hunter2')", "hunter2"),
    ("token=[redacted]-hunter2", "hunter2"),
    ("password=" + "hunter2" * 1_000, "hunter2"),
    ("Authorization: Bearer abcdefghijkl", "abcdefghijkl"),
    (f"https://h/f?X-Amz-Expires=60&X-Amz-Signature={HEX * 2}", HEX),
    ("config['password'] = 'hunter2'", "hunter2"),
    ("<Password>hunter2</Password>", "hunter2"),
]
PRIVATE_KEY = (
    "-----BEGIN {0}PRIVATE KEY-----\n" + "MIIEvQIBADANBgkqhkiG9w0B\n" * 3 + "-----END {0}PRIVATE KEY-----"
)
ORDINARY = [
    "0190a3b4-7c1d-7e2f-8a9b-0123456789ab",
    "task-0190a3b4-7c1d-7e2f-8a9b-0123456789ab",
    "checkpoint 1efb4c2a-0b7e-6d3a-8001-2f6e7c1a9b3d of AAECAwQFBgcICQoLDA0ODxAREhM=",
    "commit 51a3c24e1dbabe35a43bf88a2e8ff03605251a3c",
    "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    "This model's maximum context length is 8192 tokens; the token limits are per minute",
    "max_tokens=4096, prompt_tokens: 12, 'total_tokens': 50",
    "Unexpected token: identifier",
    "invalid token: }",
    "KeyError: 'password'",
    "KeyError: key='user_1'",
    "('body', 'password', 'email')",
    "password: must be at least 8 characters",
    "password=None, token=''",
    "SecretStr('**********'), password=SecretStr('**********')",
    "basic authentication failed, bearer token is missing",
    "Authorization: header missing",
    "sorted(rows, key=lambda row: row.name)",
    "sk-learn-based-approach-to-things",
    "api_key=os.environ['OPENAI_API_KEY'],",
    "token = get_token(user)",
    "client = Client(token=self.token, password=password)",
    "def sign_in(password: str, token: str | None = None):",
    "assert token == expected",
    "idempotency key: 0190a3b4-7c1d-7e2f-8a9b-0123456789ab",
    "http://host:8080/path@x",
    "PWD=/home/joe",
    "pass=5 fail=3",
    "2026-11-21T13:55:34Z",
    'File "/app/token.py", line 3, in secret',
]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("key", KEYS.values(), ids=KEYS)
def test_a_providers_key_is_taken_out_wherever_it_stands(key: str, place: str) -> None:
    assert redact(place.format(key)) == place.format(REDACTED)


@pytest.mark.parametrize(("text", "secret"), NAMED)
def test_a_secret_is_told_by_the_name_before_it(text: str, secret: str) -> None:
    redacted = redact(text)
    assert secret not in redacted
    assert REDACTED in redacted


@pytest.mark.parametrize("kind", ["", "RSA ", "EC ", "OPENSSH ", "ENCRYPTED "])
def test_a_private_key_is_taken_out_as_a_whole(kind: str) -> None:
    key = PRIVATE_KEY.format(kind)
    assert redact(f"before\n{key}\nafter") == f"before\n{REDACTED}\nafter"
    assert redact(json.dumps({"pem": key, "n": 1})) == json.dumps({"pem": REDACTED, "n": 1})


def test_a_private_key_that_was_cut_off_is_taken_out_as_far_as_it_goes() -> None:
    assert "MIIE" not in redact(PRIVATE_KEY.format("")[:70])


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("postgresql://app:hunter2@db:5432/mill", f"postgresql://app:{REDACTED}@db:5432/mill"),
        ("https://h/cb?api_key=hunter2&x=1", f"https://h/cb?api_key={REDACTED}&x=1"),
        ('{"password": "hunter2", "user": "joe"}', f'{{"password": "{REDACTED}", "user": "joe"}}'),
        ("Client(api_key='hunter2', timeout=3)", f"Client(api_key='{REDACTED}', timeout=3)"),
        ("password=hunter2 dbname=mill", f"password={REDACTED} dbname=mill"),
    ],
)
def test_what_stands_around_a_secret_is_left(text: str, left: str) -> None:
    assert redact(text) == left


@pytest.mark.parametrize("text", ORDINARY)
def test_ordinary_text_is_left_alone(text: str) -> None:
    assert redact(text) == text


@given(st.lists(st.sampled_from([*KEYS.values(), *(text for text, _ in NAMED), *ORDINARY, "\n", "é", "'"])))
def test_no_secret_is_left_among_others_and_redacting_twice_changes_nothing(pieces: list[str]) -> None:
    redacted = redact("\n".join(pieces))
    assert not any(key in redacted for key in KEYS.values())
    assert redact(redacted) == redacted


@given(st.text(alphabet=st.sampled_from("a1 =:'\"\\\n/@-[]{}<>&") | st.characters()))
def test_no_text_is_too_odd(text: str) -> None:
    for name in ("password", "token=", "Authorization: ", "://u:", "sk-", "eyJ"):
        assert isinstance(redact(name + text), str)


SEARCHED = 256 * 1024  # characters; of a longer text no more is searched
WORST = [
    "a",
    " ",
    "\\",
    "'",
    "é",
    "-",
    "=",
    "x-",
    "sk-",
    "-sk",
    "<a",
    "eyJaaaaaaaa.",
    "token=",
    "token='",
    'token="\\',
    'token=\\"',
    "token: a ",
    "authorization: a ",
    "cookie: ",
    "bearer ",
    "://a:",
    "://a:" + "b" * 300,
    "aB3/",
    "-----BEGIN PRIVATE KEY-----",
    "-----BEGIN PRIVATE KEY-----\n" + "QUJD" * 100,
    "<token>",
    "access_",
    "aws ",
    "SG.aaaaaaaaaaaaaaaaaaaa.",
    "key: a = ",
    "key=",
    "key=a,",
    "key='\"",
    "auth=(",
]


@pytest.mark.parametrize("piece", WORST)
def test_a_long_text_takes_a_moment_and_not_the_minutes_of_quadratic_time(piece: str) -> None:
    began = time.process_time()
    redact(piece * (SEARCHED // len(piece)))
    assert time.process_time() - began < 3  # with room for a slow machine
