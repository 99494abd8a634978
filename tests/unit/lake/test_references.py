"""Which tables a query names, and `ratings@2` made into something that SQL can say."""

from __future__ import annotations

import pytest

from lepton_ai.lake.sealed import references


@pytest.mark.parametrize(
    ("sql", "becomes", "found"),
    [
        ("select * from ratings", "select * from ratings", ["ratings"]),
        ("select * from ratings@2 r", 'select * from "ratings@2" r', ["ratings@2"]),
        ("FROM Ratings@12 JOIN films USING (x)", 'FROM "ratings@12" JOIN films USING (x)', ["ratings@12", "films"]),
        ('select * from "ratings@2"', 'select * from "ratings@2"', ["ratings@2"]),
        ("select 'ratings@2', 1 -- films@1", "select 'ratings@2', 1 -- films@1", []),
        ("select /* ratings@1 */ $$films@1$$, $a$ratings$a$", "select /* ratings@1 */ $$films@1$$, $a$ratings$a$", []),
        ("select 'it''s ratings@1' from films", "select 'it''s ratings@1' from films", ["films"]),
        ("select * from nope@1", 'select * from "nope@1"', ["nope@1"]),
        ("select 'a@b.c' as mail", "select 'a@b.c' as mail", []),
    ],
)
def test_references(sql: str, becomes: str, found: list[str]) -> None:
    assert references(sql, {"ratings", "films"}) == (becomes, found)
