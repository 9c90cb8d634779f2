"""What psycopg is given of a statement."""

from __future__ import annotations

from sqlalchemy import Integer, Text, bindparam, column, literal, select
from sqlalchemy.sql import Executable

from threadmill.core.statement import Compiled, compiled


def statement() -> Executable:
    text = bindparam("text", type_=Text)
    return select(text, bindparam("number", type_=Integer), literal("100 %")).where(column("a") == text)


def test_a_statement_is_numbered_so_that_psycopg_need_not_parse_it() -> None:
    query = compiled(statement())

    sql, values = query.ready({"number": 7, "text": "50 %s", "more": None})

    assert values == ["50 %s", 7]
    assert sql.count("$1::VARCHAR") == 2
    assert sql.count("$2::INTEGER") == 1
    assert "'100 %'" in sql


def test_one_that_was_written_by_hand_stays_as_it_is() -> None:
    query = Compiled("select %(contents)b", processors={"contents": bytes})

    assert query.ready({"contents": bytearray(b"a")}) == ("select %(contents)b", {"contents": b"a"})
