import pytest

from jobledger.worker.statements import ends_transaction


@pytest.mark.parametrize(
    "sql",
    [
        "COMMIT",
        "commit work",
        "  \n-- done\n/* all */ Commit;",
        "/* a /* nested */ comment */ COMMIT",
        "END",
        "ABORT",
        "ROLLBACK",
        "ROLLBACK WORK",
        "ROLLBACK AND CHAIN",
        "PREPARE TRANSACTION 'a'",
        "SELECT 1; COMMIT",
        "SELECT 1;;/**/ROLLBACK",
        "SELECT 'it''s'; COMMIT",
        r"SELECT E'it\'s'; COMMIT",
        r"SELECT 'C:\'; COMMIT",
        'SELECT "a;""b"; COMMIT',
        "SELECT $tag$ x; $$ y $tag$; COMMIT",
        "COMMIT PREPARED 'a'",
        "SELECT * FROM atomic; COMMIT",
        "CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT 1; END; COMMIT",
    ],
)
def test_what_ends_the_transaction_is_found(sql: str) -> None:
    assert ends_transaction(sql)


@pytest.mark.parametrize(
    "sql",
    [
        "",
        "SELECT 1",
        "SELECT CASE WHEN true THEN 1 END",
        "ROLLBACK TO a",
        "ROLLBACK TO SAVEPOINT a",
        "ROLLBACK WORK TO SAVEPOINT a",
        "RELEASE SAVEPOINT a",
        "DO $$ BEGIN PERFORM 1; END $$",
        "CREATE FUNCTION f() RETURNS int LANGUAGE plpgsql AS $f$ BEGIN RETURN 1; END; $f$",
        "CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT 1; SELECT 2; END",
        "INSERT INTO effects (note) VALUES ('first; commit later')",
        r"INSERT INTO effects (note) VALUES (E'it\'s; commit later')",
        "COMMENT ON TABLE a IS 'x; abort'",
        'SELECT 1 AS "a; commit"',
        "SELECT 1 -- ; commit",
        "SELECT 1 /* ; /* ; */ ; commit */",
        "SELECT %(id)s; PREPARE plan AS SELECT 1",
        "SELECT committed; ENDING",
        "UPDATE a SET b = a$b$c; -- $b$ ; commit",
    ],
)
def test_all_else_is_let_through(sql: str) -> None:
    assert not ends_transaction(sql)


@pytest.mark.parametrize("part", ["/* a */\n", "/*a*/", ";/**/ /**/", "/*", "'", "$$", "E'\\", "-- a\n", '"'])
def test_a_long_text_takes_a_time_in_proportion(part: str) -> None:
    ends_transaction(part * 20_000 + "SELECT 1 AS commits")
