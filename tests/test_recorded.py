"""Recorded results: provenance, reading them, the scripts that made them."""

import importlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
import sync_notebooks

from vit_lessons import recorded

ROOT = sync_notebooks.ROOT
NAMES = sorted(path.stem for path in recorded.FOLDER.glob("*.json"))
SCRIPTS = sorted(
    path.stem
    for path in (ROOT / "experiments").glob("*.py")
    if "record(" in path.read_text("utf-8") and path.stem != "runner"
)
# What a script measures, if it is not accuracy.
MEASURED = {"model_cost": "multiply_adds", "swin_cost": "milliseconds"}
RECORD = recorded.Record(
    name="small",
    command="python experiments/small.py",
    commit="0" * 40,
    date="2026-01-01",
    versions={"torch": "2"},
    hardware="a machine",
    seconds=1.0,
    runs=[
        {"settings": {"pool": pool, "rate": 1}, "seed": s, "results": {"a": a}}
        for pool, seeds in (("cls", (1.0, 3.0)), ("mean", (5.0, 9.0)))
        for s, a in enumerate(seeds)
    ],
)


def key(run):
    return json.dumps(run["settings"], sort_keys=True)


def faults(record):
    """What is missing in the provenance of a record."""
    if not (ROOT / "experiments" / f"{record.name}.py").is_file():
        yield "the script is gone"
    if record.command != f"python experiments/{record.name}.py":
        yield "the command is not that of the script"
    if not re.fullmatch(r"[0-9a-f]{40}", record.commit):
        yield "no commit"
    if not re.fullmatch(r"\d{4}-\d\d-\d\d", record.date):
        yield "no date"
    if not {"python", "torch", "vit-lessons"} <= record.versions.keys():
        yield "no versions"
    if not record.hardware or not record.seconds > 0:
        yield "no hardware or no seconds"
    seeds = {}
    for run in record.runs:
        seeds.setdefault(key(run), []).append(run["seed"])
    if not seeds or any(s != list(range(len(s))) for s in seeds.values()):
        yield "a seed is missing"
    if any(len(s) < 5 for s in seeds.values()):
        yield "fewer than five seeds"


@pytest.mark.parametrize("name", NAMES)
def test_a_record_has_its_provenance(name):
    assert list(faults(recorded.load(name))) == []


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", "nothing"),
        ("command", "python something.py"),
        ("commit", "main"),
        ("date", ""),
        ("versions", {}),
        ("hardware", ""),
        ("seconds", 0.0),
        ("runs", []),
        ("runs", recorded.load(NAMES[0]).runs[1:]),
        ("runs", recorded.load(NAMES[0]).runs[:4]),
    ],
)
def test_a_missing_provenance_is_found(field, value):
    record = recorded.load(NAMES[0])
    fields = vars(record) | {field: value}
    assert list(faults(recorded.Record(**fields))) != []


@pytest.mark.parametrize("name", NAMES)
def test_a_record_holds_all_configurations_of_its_script(name):
    wanted = importlib.import_module(name).CONFIGURATIONS
    found = {key(run) for run in recorded.load(name).runs}
    assert found == {json.dumps(c, sort_keys=True) for c in wanted}


def test_every_script_has_a_record():
    assert SCRIPTS == NAMES


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_quick_size_of_a_script_runs(name):
    command = [sys.executable, f"experiments/{name}.py", "--quick"]
    before = {p: p.stat().st_mtime for p in recorded.FOLDER.iterdir()}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert MEASURED.get(name, "accuracy") in done.stdout
    assert before == {p: p.stat().st_mtime for p in recorded.FOLDER.iterdir()}


@pytest.mark.parametrize("name", NAMES)
def test_a_run_can_be_repeated(name):
    # Another CPU adds in another order, and training enlarges the difference.
    first = recorded.load(name).runs[0]
    again = importlib.import_module(name).run(
        seed=first["seed"], **first["settings"]
    )
    for results in (again, first["results"]):
        results.pop("seconds", None)  # another machine, another time
    assert again == pytest.approx(first["results"], abs=4)


def test_values_are_those_of_the_runs_with_the_settings():
    assert RECORD.values("a", pool="cls") == [1.0, 3.0]
    assert RECORD.mean_and_std("a", pool="cls", rate=1) == (2.0, 2**0.5)


@pytest.mark.parametrize(
    ("result", "settings"),
    [
        ("a", {}),
        ("a", {"pool": "max"}),
        ("b", {"pool": "cls"}),
        ("a", {"p": 1}),
    ],
)
def test_values_of_several_or_no_settings_are_refused(result, settings):
    with pytest.raises(ValueError, match=f"got '{result}' and"):
        RECORD.values(result, **settings)


def test_an_unknown_record_names_the_known_ones():
    with pytest.raises(ValueError, match=f"{NAMES[0]}.*, got 'nothing'"):
        recorded.load("nothing")


SCRIPT = """
import time, torch
from pathlib import Path
from runner import record

def run(*, seed, size):
    with Path("calls.txt").open("a") as file:
        file.write("x")
    if size == 3 and not Path("go").exists():
        time.sleep(60)
    return {"size": size * 10 + seed}

if __name__ == "__main__":
    sizes = [{"size": size} for size in (1, 2, 3)]
    record(__file__, run, sizes, quick=(sizes, {}), seeds=2)
"""


@pytest.fixture
def project(tmp_path):
    """A repository of its own with the runner and one small script."""
    folder = tmp_path / "experiments"
    folder.mkdir()
    text = (ROOT / "experiments/runner.py").read_text("utf-8")
    (folder / "runner.py").write_text(text, "utf-8")
    (folder / "small.py").write_text(SCRIPT, "utf-8")
    package = tmp_path / "vit_lessons/recorded"
    package.mkdir(parents=True)
    (package.parent / "__init__.py").touch()
    text = Path(recorded.__file__).read_text("utf-8")
    (package / "__init__.py").write_text(text, "utf-8")
    (tmp_path / ".gitignore").write_text("__pycache__\ncalls.txt\ngo\n.partial")
    for command in (
        "git init -q",
        "git add .",
        "git -c user.name=a -c user.email=a@b commit -qm first",
    ):
        subprocess.run(command.split(), cwd=tmp_path, check=True)
    return tmp_path


def start(project, **options):
    return subprocess.Popen(
        [sys.executable, "experiments/small.py"],
        cwd=project,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(project)},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.mark.skipif(sys.platform == "win32", reason="sends a POSIX signal")
def test_a_killed_experiment_goes_on_where_it_stopped(project):
    process = start(project)
    (partial,) = _wait_for_lines(project, 4)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    time.sleep(0.1)
    with partial.open("a") as file:
        file.write('{"settings": {"size": 3}, "se')  # killed while writing
    calls = project / "calls.txt"
    calls.unlink()
    (project / "go").touch()
    _, errors = start(project).communicate(timeout=120)
    assert calls.read_text() == "xx", errors  # only the two of size 3
    assert not partial.exists()
    written = json.loads(
        (project / "vit_lessons/recorded/small.json").read_text("utf-8")
    )
    record = recorded.Record(**written)
    assert record.values("size", size=2) == [20, 21]
    assert record.values("size", size=3) == [30, 31]
    assert len(record.runs) == 6


def _wait_for_lines(project, number):
    for _ in range(600):
        files = list(project.glob("experiments/.partial/*.jsonl"))
        if files and files[0].read_text().count("\n") == number:
            return files
        time.sleep(0.1)
    raise AssertionError("the runs of size 1 and 2 did not end")


def test_uncommitted_code_is_not_recorded(project):
    with (project / "experiments/small.py").open("a") as file:
        file.write("# changed\n")
    _, errors = start(project).communicate(timeout=60)
    assert "commit these first" in errors
    assert not (project / "vit_lessons/recorded/small.json").exists()


def test_a_record_is_shown_by_some_chapter():
    shown = "\n".join(
        cell.source
        for path in (ROOT / "notebooks").glob("*.ipynb")
        for cell in nbformat.read(path, as_version=4).cells
    )
    for name in NAMES:
        assert f'recorded.load("{name}")' in shown
