"""How the names of tables are read; everything else about tables needs a Postgres."""

import pytest

from jobledger import JobRefused
from jobledger.etl.tables import TableName, check_listed


@pytest.mark.parametrize(
    ("text", "schema", "name"),
    [
        ("public.daily_stats", "public", "daily_stats"),
        ("daily_stats", "public", "daily_stats"),
        ("Etl.Daily Stats", "Etl", "Daily Stats"),
        ('"a.b"."c.d"', "a.b", "c.d"),
        ('"a.b".c', "a.b", "c"),
        ('a."say ""hi"""', "a", 'say "hi"'),
    ],
)
def test_names(text: str, schema: str, name: str) -> None:
    assert TableName.parse(text) == TableName(schema, name)


@pytest.mark.parametrize("text", ["", ".", "a.", ".a", "a.b.c", '"a', 'a"b', '""', 'a."b"c'])
def test_what_is_no_name(text: str) -> None:
    with pytest.raises(ValueError, match=r"is no table: say schema\.table"):
        TableName.parse(text)


def test_dots_do_not_make_two_names_equal() -> None:
    with pytest.raises(JobRefused):
        check_listed(TableName("a.b", "c"), ['a."b.c"'], "SETTING")
    check_listed(TableName("a", "b.c"), ['a."b.c"'], "SETTING")
