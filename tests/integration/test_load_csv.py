"""LoadCsv on a real Postgres: what it loads, what it refuses, and how it names the rows that it cannot load."""

import gzip
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness import Stack, one_value
from jobledger import Connections, JobHandle, JobRefused, JobStatus, Outcome, Settings, configure
from jobledger.etl import csv_rows, data_file
from jobledger.etl.bad_file import BadFile, BadRows
from jobledger.jobs import LoadCsv
from jobledger.ledger import OWN_TABLES
from jobledger.worker import run_job

TABLES = """
CREATE TYPE mood AS ENUM ('good', 'bad');
CREATE DOMAIN percent AS int CHECK (VALUE BETWEEN 0 AND 100);
CREATE TABLE owners (id int PRIMARY KEY);
INSERT INTO owners VALUES (1);
CREATE TABLE items (
    id int PRIMARY KEY,
    name varchar(5) NOT NULL,
    price numeric(6, 2) CHECK (price >= 0),
    owner_id int REFERENCES owners,
    code text UNIQUE,
    mood mood,
    share percent,
    noted timestamptz NOT NULL DEFAULT now(),
    shouted text GENERATED ALWAYS AS (upper(name)) STORED
);
CREATE TABLE "Odd ""table"".x" ("a b%s" int PRIMARY KEY, "line" text, ":c1" text);
CREATE TABLE pairs (a int, b int, UNIQUE (a, b));
CREATE TABLE parted (n int PRIMARY KEY, note text) PARTITION BY RANGE (n);
CREATE TABLE parted_all PARTITION OF parted DEFAULT;
CREATE VIEW a_view AS SELECT * FROM pairs;
"""


@pytest.fixture
def environment(environment: dict[str, str], tmp_path: Path) -> dict[str, str]:
    data = tmp_path / "data"
    data.mkdir()
    own = ["public.items", "pairs", "public.parted", "public.a_view", "public.missing", '"Odd ""table"".x"']
    listed = ",".join([*own, *(f"public.{name}" for name in OWN_TABLES)])
    return environment | {"JOBLEDGER_DATA_DIR": str(data), "JOBLEDGER_LOADABLE_TABLES": listed}


@pytest.fixture
def database(connections: Connections) -> Connections:
    with connections.transaction() as connection:
        connection.exec_driver_sql(TABLES.replace("%", "%%"))
    return connections


@pytest.fixture
def data(environment: dict[str, str]) -> Path:
    return Path(environment["JOBLEDGER_DATA_DIR"])


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    """Close what `configure` made in a test."""
    yield
    configure().close()


def load(path: str, table: str = "items", **options: Any) -> JobHandle:
    handle = LoadCsv.dispatch(path=path, table=table, **options)
    run_job(str(handle.id))
    return handle.refresh()


def problems(path: str, table: str = "items", **options: Any) -> list[str]:
    """The rows that are named by a load that must fail."""
    handle = LoadCsv.dispatch(path=path, table=table, **options)
    with pytest.raises(BadRows) as raised:
        run_job(str(handle.id))
    assert handle.refresh().status is JobStatus.FAILED
    assert len(handle.attempts) == 1, "a bad file is not tried again"
    assert handle.attempts[0].error_message == str(raised.value)
    return [str(row) for row in raised.value.rows]


def refusal(**payload: Any) -> str:
    """Why a dispatch is refused."""
    with pytest.raises(JobRefused) as raised:
        LoadCsv.dispatch(**payload)
    return str(raised.value)


def query(connections: Connections, sql: str) -> list[tuple[Any, ...]]:
    with connections.transaction() as connection:
        return [tuple(row) for row in connection.exec_driver_sql(sql)]


def count(connections: Connections, table: str) -> int:
    return int(one_value(connections, f"SELECT count(*) FROM {table}"))


# -- what it loads


def pack_plain(file: Path, text: str) -> Path:
    file.write_text(text)
    return file


def pack_gzip(file: Path, text: str) -> Path:
    packed = file.with_name(file.name + ".gz")
    packed.write_bytes(gzip.compress(text.encode()))
    return packed


def pack_zip(file: Path, text: str) -> Path:
    packed = file.with_name(file.name + ".zip")
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("inside/", "")  # a directory
        archive.writestr("inside/items.csv", text)
    return packed


def test_loads_plain_and_packed_files_in_a_stock_worker(database: Connections, system: Stack, data: Path) -> None:
    text = "id,name,price\n{0},nut,1.50\n{1},bolt,NA\n"
    files = [
        pack_plain(data / "plain.csv", text.format(1, 2)),
        pack_gzip(data / "one.csv", text.format(3, 4)),
        pack_zip(data / "two.csv", text.format(5, 6)),
    ]
    system.worker("etl")
    for file in files:
        handle = LoadCsv.dispatch(path=file.name, table="public.items", null_values=["NA"], queue="etl").wait(30)
        assert handle.status is JobStatus.COMPLETED, handle.attempts
        assert handle.result == {"table": "public.items", "rows_read": 2, "rows_inserted": 2, "rows_updated": 0}
        last = handle.attempts[-1]
        assert (last.progress_done, last.progress_total, last.progress_note) == (2, 2, "loaded")
    loaded = query(database, "SELECT id, name, price::text FROM items ORDER BY 1")
    assert loaded[:2] == [(1, "nut", "1.50"), (2, "bolt", None)]
    assert [row[0] for row in loaded] == [1, 2, 3, 4, 5, 6]


def test_a_second_load_updates(database: Connections, data: Path) -> None:
    (data / "items.csv").write_text("id,name,price\n1,nut,1\n2,bolt,2\n")
    assert load("items.csv", key=["id"]).result["rows_inserted"] == 2
    assert load("items.csv", key=["id"]).result["rows_updated"] == 2
    (data / "items.csv").write_text("price,id,name\n5,2,bolt\n6,3,pin\n")
    assert load("items.csv", key=["id"]).result == {
        "table": "public.items",
        "rows_read": 2,
        "rows_inserted": 1,
        "rows_updated": 1,
    }
    assert query(database, "SELECT id, name, price::int FROM items ORDER BY 1") == [
        (1, "nut", 1),
        (2, "bolt", 5),
        (3, "pin", 6),
    ]


def test_rows_that_are_all_key(database: Connections, data: Path) -> None:
    (data / "pairs.csv").write_text("a,b\n1,1\n1,2\n")
    load("pairs.csv", "pairs", key=["a", "b"])
    (data / "pairs.csv").write_text("a,b\n1,1\n1,3\n")
    result = load("pairs.csv", "pairs", key=["b", "a"]).result
    assert (result["rows_read"], result["rows_inserted"], result["rows_updated"]) == (2, 1, 0)
    assert count(database, "pairs") == 3


def test_a_partitioned_table(database: Connections, data: Path) -> None:
    (data / "parted.csv").write_text("n,note\n1,x\n2,y\n")
    load("parted.csv", "parted", key=["n"])
    assert load("parted.csv", "parted", key=["n"]).result["rows_updated"] == 2


def test_a_file_with_a_header_only(database: Connections, data: Path) -> None:
    (data / "items.csv").write_text("id,name\n")
    assert load("items.csv", key=["id"]).result["rows_read"] == 0


def test_all_that_a_csv_file_may_hold(database: Connections, data: Path) -> None:
    text = (
        '\ufeffa b%s;line;":c1"\r\n'
        '1;"two\nlines; and ""quotes""";\\N\r\n'
        "\r\n"
        "2;tab\tand \\. back\\slash;ünï\r\n"
        '3;"\\.\n\\."; x \r\n'
    )
    (data / "odd.csv").write_bytes(text.encode())
    load("odd.csv", 'public."Odd ""table"".x"', key=["a b%s"], delimiter=";")
    assert query(database, 'SELECT * FROM "Odd ""table"".x" ORDER BY 1') == [
        (1, 'two\nlines; and "quotes"', "\\N"),
        (2, "tab\tand \\. back\\slash", "ünï"),
        (3, "\\.\n\\.", " x "),
    ]


def test_null_only_on_request(database: Connections, data: Path) -> None:
    (data / "items.csv").write_text('id,name,code\n1,a,NA\n2,b,\n3,c,"x"\n')
    load("items.csv", key=["id"])
    assert query(database, "SELECT code FROM items ORDER BY id") == [("NA",), ("",), ("x",)]
    load("items.csv", key=["id"], null_values=["NA", ""])
    assert query(database, "SELECT code FROM items ORDER BY id") == [(None,), (None,), ("x",)]


def test_types_of_users(database: Connections, data: Path) -> None:
    (data / "items.csv").write_text("id,name,mood,share,noted\n1,a,good,50,2013-01-01T10:00:00Z\n")
    load("items.csv")
    assert query(database, "SELECT mood::text, share, shouted, extract(hour FROM noted)::int FROM items") == [
        ("good", 50, "A", 10)
    ]


def test_the_load_is_there_exactly_when_the_job_has_completed(database: Connections, data: Path) -> None:
    """Its rows are written in the job's own session, so a fenced attempt leaves nothing."""
    (data / "items.csv").write_text("id,name\n1,a\n")
    handle = LoadCsv.dispatch(path="items.csv", table="items")
    with database.transaction() as connection:
        connection.exec_driver_sql("UPDATE job_statuses SET attempt = 7 WHERE status = 'queued'")
    run_job(str(handle.id))
    assert handle.refresh().attempts[-1].number == 8
    assert run_job(str(handle.id)).startswith("nothing to do")
    assert count(database, "items") == 1


def test_a_connection_that_is_lost_during_the_copy(
    database: Connections, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (data / "items.csv").write_text("id,name\n1,a\n")
    handle = LoadCsv.dispatch(path="items.csv", table="items")
    end_others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'COPY%%'"
    encode = csv_rows.CsvRows._encode

    def cut(self: csv_rows.CsvRows, batch: list[tuple[int, list[str]]]) -> bytes:
        query(database, end_others)
        return encode(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(csv_rows.CsvRows, "_encode", cut)
        assert run_job(str(handle.id)).startswith("scheduled")
    assert [attempt.outcome for attempt in handle.attempts] == [Outcome.LOST]
    assert one_value(database, "SELECT errors FROM job_statuses") == 0
    assert count(database, "items") == 0


# -- the files that it refuses


BAD_PATHS = {
    "../secret.csv": "only files below the data directory",
    "a/../../secret.csv": "only files below",
    "a/../items.csv": "only files below",
    "/etc/passwd": "only files below",
    "": "only files below",
    "missing.csv": "No such file",
    "items.csv/x": "Not a directory",
    "directory": "is no file",
    ".": "is no file",
    "fifo": "is no file",
    "link_out.csv": "leads out of the data directory",
    "link_dir/secret.csv": "leads out of the data directory",
    "circle": "cannot be read in the data directory",
    "x" * 5000: "File name too long",
}


def test_paths_refused_at_dispatch(database: Connections, data: Path) -> None:
    (data.parent / "secret.csv").write_text("id,name\n1,a\n")
    (data / "items.csv").write_text("id,name\n1,a\n")
    (data / "directory").mkdir()
    os.mkfifo(data / "fifo")
    (data / "link_out.csv").symlink_to(data.parent / "secret.csv")
    (data / "link_dir").symlink_to(data.parent)
    (data / "circle").symlink_to(data / "circle")
    for path, reason in BAD_PATHS.items():
        assert reason in refusal(path=path, table="items"), path
    assert count(database, "job_statuses") == 0


def test_paths_that_stay_inside(database: Connections, data: Path) -> None:
    (data / "sub").mkdir()
    (data / "sub" / "items.csv").write_text("id,name\n1,a\n")
    (data / "link.csv").symlink_to("sub/items.csv")
    for path in ("sub/items.csv", "./sub//items.csv", "link.csv", str(data / "sub" / "items.csv")):
        assert load(path, key=["id"]).status is JobStatus.COMPLETED


def test_a_path_is_checked_again_when_it_runs(database: Connections, data: Path) -> None:
    (data.parent / "secret.csv").write_text("id,name\n1,a\n")
    (data / "items.csv").write_text("id,name\n1,a\n")
    handle = LoadCsv.dispatch(path="items.csv", table="items")
    (data / "items.csv").unlink()
    (data / "items.csv").symlink_to(data.parent / "secret.csv")
    with pytest.raises(JobRefused, match="leads out"):
        run_job(str(handle.id))
    assert handle.refresh().status is JobStatus.FAILED
    assert count(database, "items") == 0


BAD_FILES = [
    ("x.gz", b"id,name\n1,a\n", "x.gz is damaged: Not a gzipped file"),
    ("x.gz", gzip.compress(b"id,name\n" + b"1,a\n" * 5_000)[:-20], "x.gz is damaged"),
    ("x.zip", b"id,name\n1,a\n", "x.zip is no zip archive"),
    ("x.csv", b"", "the first line must name the columns"),
    ("x.csv", b"\n1,a\n", "the first line must name the columns"),
    ("x.csv", b'id,"name\n1,a\n', "line 1 cannot be read"),
    ("x.csv", b"id,name\n1," + b"x" * 2_000_000, "line 2 is longer than"),
    ("x.csv", b"id,name,colour,size\n", "'colour', 'size' (unknown to the table)"),
    ("x.csv", b"ID,name,id\n", "'ID' (unknown to the table)"),
    ("x.csv", b"id,id,name\n", "'id' (named twice)"),
    ("x.csv", b"price\n", "'id', 'name' (required by the table, but not in the file)"),
    ("x.csv", b"id,name,shouted\n", "'shouted' (written by the database itself)"),
    ("x.csv", b"id,name,\xff\n", "(unknown to the table)"),
    ("x.csv", b'"id) SELECT 1; DROP TABLE items; --",id,name\n', "(unknown to the table)"),
]


def test_files_that_cannot_be_loaded(database: Connections, data: Path) -> None:
    for name, content, reason in BAD_FILES:
        (data / name).write_bytes(content)
        handle = LoadCsv.dispatch(path=name, table="items")
        with pytest.raises(BadFile) as raised:
            run_job(str(handle.id))
        assert reason in str(raised.value)
        assert handle.refresh().status is JobStatus.FAILED
        assert handle.attempts[0].error_type == "BadFile"
    assert count(database, "items") == 0


def test_a_key_that_is_not_in_the_file(database: Connections, data: Path) -> None:
    (data / "items.csv").write_text("id,name\n1,a\n")
    handle = LoadCsv.dispatch(path="items.csv", table="items", key=["code"])
    with pytest.raises(BadFile, match=r"'code' \(part of the key, but not in the file\)"):
        run_job(str(handle.id))


def test_archives_that_hold_something_else(database: Connections, data: Path) -> None:
    with zipfile.ZipFile(data / "two.zip", "w") as archive:
        archive.writestr("a.csv", "id,name\n")
        archive.writestr("b.csv", "id,name\n")
    with zipfile.ZipFile(data / "none.zip", "w"):
        pass
    for name, reason in (("two.zip", "holds 2 files"), ("none.zip", "holds 0 files")):
        handle = LoadCsv.dispatch(path=name, table="items")
        with pytest.raises(BadFile, match=reason):
            run_job(str(handle.id))


def test_an_archive_that_unpacks_to_too_much(
    database: Connections, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data_file, "MAX_UNPACKED_BYTES", 1_000_000)
    text = "id,name\n" + "".join(f"{n},aaaa\n" for n in range(200_000))
    for pack in (pack_gzip, pack_zip):
        handle = LoadCsv.dispatch(path=pack(data / "bomb.csv", text).name, table="items")
        with pytest.raises(BadFile, match="unpacks to more than 1,000,000 bytes"):
            run_job(str(handle.id))
    assert count(database, "items") == 0


# -- the tables and options that it refuses


BAD_TABLES = {
    "owners": "public.owners is not among the tables that JOBLEDGER_LOADABLE_TABLES allows",
    "other.items": "not among",
    "Items": "not among",
    "items; DROP TABLE items": "not among",
    'items" (id) SELECT 1; --': "is no table",
    "a.b.items": "is no table",
    "": "is no table",
    "missing": "does not exist",
    "a_view": "is a view",
    **dict.fromkeys(OWN_TABLES, "one of the ledger's own tables"),
}
BAD_OPTIONS: list[tuple[dict[str, Any], str]] = [
    ({"delimiter": ""}, "one character"),
    ({"delimiter": ";;"}, "one character"),
    ({"delimiter": '"'}, "one character"),
    ({"delimiter": "\n"}, "one character"),
    ({"key": ["name"]}, "no unique or exclusion constraint"),
    ({"key": ["id", "name"]}, "no unique or exclusion constraint"),
    ({"key": ["nothing"]}, 'column "nothing" does not exist'),
    ({"key": ['id") DO UPDATE SET name = 1; --']}, "does not exist"),
]


def test_tables_and_options_refused_at_dispatch(database: Connections, data: Path) -> None:
    (data / "items.csv").write_text("id,name\n1,a\n")
    for table, reason in BAD_TABLES.items():
        assert reason in refusal(path="items.csv", table=table), table
    for options, reason in BAD_OPTIONS:
        assert reason in refusal(path="items.csv", table="items", **options), options
    assert count(database, "job_statuses") == 0
    assert count(database, "items") == 0


def test_a_table_is_checked_again_when_it_runs(settings: Settings, database: Connections, data: Path) -> None:
    (data / "items.csv").write_text("id,name\n1,a\n")
    handle = LoadCsv.dispatch(path="items.csv", table="items")
    configure(settings.model_copy(update={"loadable_tables": ()}))
    with pytest.raises(JobRefused, match=r"allows \(nothing\)"):
        run_job(str(handle.id))


# -- the rows that it cannot load


def test_rows_of_a_wrong_length(database: Connections, data: Path) -> None:
    (data / "items.csv").write_text('id,name\n1,a\n2\n3,"two\nlines"\n4,d,e\n')
    assert problems("items.csv") == [
        "line 3: has 1 fields, the header has 2",
        "line 6: has 3 fields, the header has 2",
    ]
    assert count(database, "items") == 0


def test_text_that_is_no_csv(database: Connections, data: Path) -> None:
    (data / "items.csv").write_text('id,name\n1,a\n2,"b"c\n3,c\n')
    assert problems("items.csv") == ["line 3: cannot be read as CSV: ',' expected after '\"'"]
    (data / "items.csv").write_text('id,name\n1,a\n2,"b\n3,c\n')
    assert problems("items.csv") == ["line 3: cannot be read as CSV: unexpected end of data"]


def test_text_that_cannot_be_stored(database: Connections, data: Path) -> None:
    (data / "items.csv").write_bytes("id,name\n1,é\n".encode() + b"2,\xe9\n3,c\n4,d\x00\n")
    assert problems("items.csv") == [
        r"line 3, column name, value '\udce9': is not UTF-8",
        r"line 5, column name, value 'd\x00': holds a NUL character, which Postgres cannot store",
    ]


def test_values_of_a_wrong_type(database: Connections, data: Path) -> None:
    (data / "items.csv").write_text(
        "id,name,price,mood,share,noted\n"
        "1,a,1,good,1,2013-01-01\n"
        "two,b,2,good,1,2013-01-01\n"
        '3,"c\nc",3,good,1,2013-01-01\n'
        "4,d,4,fair,1,2013-13-01\n"
        "99999999999,e,5,good,1,2013-01-01\n"
        "6,toolong,6,good,101,2013-01-01\n"
        "7,g,12345.6,good,,2013-01-01\n"
    )
    assert problems("items.csv") == [
        "line 3, column id, value 'two': invalid input syntax for type integer: \"two\"",
        "line 6, column mood, value 'fair': invalid input value for enum mood: \"fair\"",
        "line 6, column noted, value '2013-13-01': date/time field value out of range: \"2013-13-01\"",
        "line 7, column id, value '99999999999': value \"99999999999\" is out of range for type integer",
        "line 8, column name, value 'toolong': value too long for type character varying(5)",
        "line 8, column share, value '101': value for domain percent violates check constraint \"percent_check\"",
        "line 9, column price, value '12345.6': numeric field overflow",
        "line 9, column share, value '': invalid input syntax for type integer: \"\"",
    ]
    assert count(database, "items") == 0


@pytest.mark.parametrize("key", [[], ["id"]])
def test_rows_that_the_table_refuses(database: Connections, data: Path, key: list[str]) -> None:
    with database.transaction() as connection:
        connection.exec_driver_sql("INSERT INTO items (id, name, code) VALUES (100, 'x', 'taken')")
    (data / "items.csv").write_text(
        "id,name,price,owner_id,code\n1,a,1,1,A\n2,NA,2,1,B\n3,c,-3,1,C\n4,d,4,9,D\n5,e,5,1,taken\n6,f,6,1,F\n"
    )
    assert problems("items.csv", null_values=["NA"], key=key) == [
        "line 3, column name, value 'NA': "
        'null value in column "name" of relation "items" violates not-null constraint',
        "line 4, column price, value '-3': "
        'new row for relation "items" violates check constraint "items_price_check"',
        "line 5, column owner_id, value '9': insert or update on table \"items\" violates foreign key constraint "
        '"items_owner_id_fkey" Key (owner_id)=(9) is not present in table "owners".',
        "line 6, column code, value 'taken': duplicate key value violates unique constraint "
        '"items_code_key" Key (code)=(taken) already exists.',
    ]
    assert count(database, "items") == 1


@pytest.mark.parametrize("key", [[], ["id"]])
def test_keys_twice_in_a_file(database: Connections, data: Path, key: list[str]) -> None:
    (data / "items.csv").write_text("id,name\n1,a\n2,b\n01,c\n2,d\n2,e\n")
    assert problems("items.csv", key=key) == [
        "line 4, column id, value '01': is already on line 2",
        "line 5, column id, value '2': is already on line 3",
        "line 6, column id, value '2': is already on line 3",
    ]
    assert count(database, "items") == 0


def test_keys_that_are_null(database: Connections, data: Path) -> None:
    (data / "pairs.csv").write_text("a,b\n1,1\n2,NA\n")
    assert problems("pairs.csv", "pairs", key=["a", "b"], null_values=["NA"]) == [
        "line 3, column a, b, value '2, NA': the key is null in part"
    ]


def test_a_trigger_that_refuses(database: Connections, data: Path) -> None:
    with database.transaction() as connection:
        connection.exec_driver_sql("""
            CREATE FUNCTION no_thirteen() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN IF NEW.a = 13 THEN RAISE EXCEPTION 'not thirteen'; END IF; RETURN NEW; END $$;
            CREATE TRIGGER no_thirteen BEFORE INSERT ON pairs FOR EACH ROW EXECUTE FUNCTION no_thirteen();
        """)
    (data / "pairs.csv").write_text("a,b\n12,1\n13,1\n")
    assert problems("pairs.csv", "pairs") == ["line 3: not thirteen"]


def test_the_first_ten_are_named(database: Connections, data: Path) -> None:
    lines = [f"{n},{'x' if n % 100 == 0 else n}" for n in range(1, 5001)]
    (data / "pairs.csv").write_text("a,b\n" + "\n".join(lines) + "\n")
    found = problems("pairs.csv", "pairs")
    assert [row.split(",")[0] for row in found] == [f"line {n}" for n in range(101, 1002, 100)]
    assert count(database, "pairs") == 0


def test_a_file_that_is_all_wrong(database: Connections, data: Path) -> None:
    (data / "pairs.csv").write_text("a,b\n" + "x,y,z\n" * 10_000)
    assert len(problems("pairs.csv", "pairs")) == 10
    (data / "pairs.csv").write_text("a,b\n" + "x,y\n" * 10_000)
    assert len(problems("pairs.csv", "pairs")) == 10


def test_a_file_is_never_in_memory_whole(database: Connections, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    encode = csv_rows.CsvRows._encode

    def measured(self: csv_rows.CsvRows, batch: list[tuple[int, list[str]]]) -> bytes:
        sizes.append(len(batch))
        return encode(self, batch)

    monkeypatch.setattr(csv_rows.CsvRows, "_encode", measured)
    (data / "pairs.csv").write_text("a,b\n" + "".join(f"{n},{n}\n" for n in range(10_000)))
    assert load("pairs.csv", "pairs").result["rows_read"] == 10_000
    assert max(sizes) == csv_rows.BATCH_ROWS
