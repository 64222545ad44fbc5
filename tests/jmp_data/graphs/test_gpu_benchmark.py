"""The script that measures graphs on a GPU runs on CPU tensors too, and everything it compares has the same edges."""

from __future__ import annotations

import importlib.util
import json
import sys

import pytest

from benchmarks.gpu import graphs


def test_smoke(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["graphs.py", "--device", "cpu", "--batch", "1", "--rounds", "1", "--json"])
    graphs.main()
    result = json.loads(capsys.readouterr().out)
    rows = {(row["case"].split()[0], row["what"]): row for row in result["rows"]}
    ways = {"four graphs, torch", "widest graph, torch", "four graphs, kernel and copy"}
    assert {what for case, what in rows if case == "molecules"} >= ways
    ways |= {"widest graph, original's method"}
    if importlib.util.find_spec("nvalchemiops"):
        ways |= {"search alone, nvalchemi"}
    assert {what for case, what in rows if case == "slabs"} == ways
    assert all(row["agrees"] and row["seconds"] > 0 for row in rows.values())
