"""The lines of many programs as one stream of JSON objects."""

import json
import os
from pathlib import Path

from jobledger.up.output import Output


def test_as_json_each_line_is_an_object_that_names_its_program(tmp_path: Path) -> None:
    log_file = tmp_path / "log"
    reading, writing = os.pipe()
    with Output(width=8, log_file=log_file, as_json=True) as output:
        output.attach("worker-1", os.fdopen(reading, "rb"))
        os.write(writing, b'{"event": "ours", "program": "me"}\n[1]\nplain \x1b[2J\xff\r\n')
        os.close(writing)
        output.drain(5)

    lines = [json.loads(line) for line in log_file.read_text().split("\n")[:-1]]
    assert [line["event"] for line in lines] == ["ours", "[1]", "plain \x1b[2J\\xff\r"]
    assert [line["program"] for line in lines] == ["worker-1"] * 3
    assert lines[0]["own_program"] == "me"
    assert lines[2]["time"].endswith("Z")
    assert b"\x1b" not in log_file.read_bytes()
