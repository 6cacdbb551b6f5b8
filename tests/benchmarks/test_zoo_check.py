"""The audit of the whole zoo: the programs on two tiny architectures, and the committed result."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import zoo_page
from tests import warm

ROOT = Path(__file__).resolve().parents[2]
TINY = ["timm/test_resnet", "timm/test_vit"]


def audit(folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "benchmarks/zoo_check.py", *TINY, "-j", "1", "--work", folder / "work", *more]
    return warm.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.fixture(scope="module")
def audited(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("audit")
    done = audit(folder, "--out", str(folder))
    assert done.returncode in (0, 1), (
        done.stderr
    )  # 1 where inspecting tiny models took long: that depends on the machine
    return folder


def test_the_audit_finds_what_is_there(audited: Path) -> None:
    found = json.loads((audited / "zoo.json").read_text())
    assert found["failed"] == found["not_converted_inside"] == {}
    assert found["totals"]["timm"]["models"] == 2 and found["totals"]["timm"]["converted"] == 1
    assert found["proofs"]["models"] == 1 and found["proofs"]["sites_left"] == 0
    assert found["inspection_by_the_clock"]["models"] == 2 and found["inspection_by_the_clock"]["wall_seconds"] > 0
    assert found["inspection"]["timm"]["models"] == 2 and found["inspection"]["timm"]["ratio"] > 0
    rows = {row["model"]: row for row in csv.DictReader((audited / "zoo.csv").read_text().splitlines())}
    assert [row["status"] for row in rows.values()] == ["converted", "inspected"]
    assert 0 <= float(rows["timm/test_resnet"]["identity_error"]) <= 1e-4
    assert rows["timm/test_vit"]["skipped_patchify_stem"] == "1"


def test_a_second_run_only_writes_down_what_the_first_found(audited: Path) -> None:
    before = (audited / "zoo.json").read_text()
    done = audit(audited, "--out", str(audited))
    assert "[1/2]" not in done.stdout, "nothing is done again"
    assert json.loads((audited / "zoo.json").read_text()) == json.loads(before)


def test_a_part_of_the_zoo_does_not_become_the_result(tmp_path: Path) -> None:
    done = audit(tmp_path)
    assert done.returncode == 2 and "give --out" in done.stderr


def test_the_page_of_the_audit(audited: Path, tmp_path: Path) -> None:
    page = tmp_path / "zoo.md"
    command = [sys.executable, "benchmarks/zoo_page.py", "--data", str(audited), "--page", str(page)]
    warm.run(command, cwd=ROOT, check=True)
    text = page.read_text()
    assert "| timm | 2 | 1 | 1 | 0 |" in text and "None: every site inside a network" in text
    assert warm.run([*command, "--check"], cwd=ROOT).returncode == 0
    page.write_text(text + "more\n")
    assert warm.run([*command, "--check"], cwd=ROOT).returncode == 1
    data, rows = json.loads((audited / "zoo.json").read_text()), []
    assert "Other recipes" not in text and "Other recipes" not in zoo_page.page(data, rows)
    why = dict.fromkeys(("timm/x", "timm/y"), "no")
    data["drift"] |= {"measured": 1, "largest_predicted": 0.0, "largest_measured": 3e-7, "not_measured": why}
    text = zoo_page.page(data, rows, {"aligned": data})
    assert re.search(
        r"\| `aligned` \| 2 \| 1 \| 0 \| \d+ \| \S+ \(float32\) \| \d+ of \d+ \| 0 \| 3e-07 \(1 models\) \|", text
    )
    assert "    - drift not measured of 2 (`timm/x`, ...): no" in text


def test_the_committed_page_is_what_the_committed_data_say() -> None:
    data = json.loads((ROOT / "benchmarks" / "zoo.json").read_text())
    with open(ROOT / "benchmarks" / "zoo.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert (ROOT / "docs" / "zoo.md").read_text(encoding="utf-8") == zoo_page.page(data, rows, zoo_page.others())
    assert {row["status"] for row in rows} <= {"inspected", "converted", *(["failed"] if data["failed"] else [])}
    for row in rows:  # nothing in the totals that is not in the rows
        if row["status"] == "converted":
            limit = {"float32": 1e-4, "float64": 1e-9}[row["identity_dtype"]]
            assert float(row["identity_error"]) <= limit and row["sites_left"] == "0", row["model"]
    total = sum(found["models"] for found in data["totals"].values())
    assert len(rows) == len({row["model"] for row in rows}) == total
