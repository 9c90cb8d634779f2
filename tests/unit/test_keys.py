"""The thread key is injective, and so is the label of a tenant's items in the store."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from threadmill.core.errors import InvalidTenant, InvalidThreadId
from threadmill.core.keys import (
    MAX_THREAD_ID_LENGTH,
    check_tenant,
    check_thread_id,
    split_thread_key,
    store_label,
    thread_key,
)

TENANTS = st.from_regex(r"[A-Za-z0-9._-]{1,64}", fullmatch=True)
THREAD_IDS = st.text(
    st.characters(exclude_categories=("Cc", "Cs")), min_size=1, max_size=MAX_THREAD_ID_LENGTH
)
# Few characters and short texts, so that two of them often differ by one character only.
CLOSE_TENANTS = st.text("aA._-", min_size=1, max_size=3)
CLOSE_THREAD_IDS = st.text("aA:._-/%é\u0301 ", min_size=1, max_size=3)
CLOSE_PAIRS = st.tuples(CLOSE_TENANTS, CLOSE_THREAD_IDS)


@given(TENANTS, THREAD_IDS)
def test_splitting_a_thread_key_gives_back_what_it_was_made_of(tenant: str, thread_id: str) -> None:
    assert split_thread_key(thread_key(tenant, thread_id)) == (tenant, thread_id)


@given(CLOSE_PAIRS, CLOSE_PAIRS)
def test_two_threads_never_share_a_thread_key(one: tuple[str, str], other: tuple[str, str]) -> None:
    assert (thread_key(*one) == thread_key(*other)) == (one == other)


@given(CLOSE_TENANTS, CLOSE_TENANTS)
def test_two_tenants_never_share_a_store_label(one: str, other: str) -> None:
    assert (store_label(one) == store_label(other)) == (one == other)


@given(TENANTS)
def test_a_store_label_is_one_label_of_a_namespace(tenant: str) -> None:
    label = store_label(tenant)
    assert "." not in label
    assert label.index(":") == len(label) - 1


@pytest.mark.parametrize("tenant", ["", "a" * 65, "a:b", "a/b", "a b", "acme\n", "é", "%", None, 7, b"acme"])
def test_a_tenant_outside_the_alphabet_is_refused(tenant: object) -> None:
    with pytest.raises(InvalidTenant):
        check_tenant(tenant)


@pytest.mark.parametrize(
    ("thread_id", "reason"),
    [
        ("", "must not be empty"),
        ("a" * 256, "is longer than 255 characters"),
        ("a\nb", r"U\+000A"),
        ("\x00", r"U\+0000"),
        ("\x7f", r"U\+007F"),
        ("\x9f", r"U\+009F"),
        ("\ud800", r"U\+D800"),
        (None, "must be a string"),
        (7, "must be a string"),
    ],
)
def test_what_cannot_be_a_thread_id_is_refused_with_the_reason(thread_id: object, reason: str) -> None:
    with pytest.raises(InvalidThreadId, match=reason):
        check_thread_id(thread_id)


@pytest.mark.parametrize("thread_id", ["a" * 255, ":", "%_./\\'\"", "билет-42", "😀", "\u200b", "\u2028"])
def test_any_other_text_is_a_thread_id(thread_id: str) -> None:
    assert check_thread_id(thread_id) == thread_id


@pytest.mark.parametrize("key", ["acme", ":t", "acme:", "a b:t", ""])
def test_what_is_no_thread_key_cannot_be_split(key: str) -> None:
    with pytest.raises((InvalidTenant, InvalidThreadId)):
        split_thread_key(key)
