"""Run an experiment and record it: vit_lessons/recorded/NAME.json.

A script of this folder names its configurations and a function that runs
one of them, and calls record(). Every script then takes

    python experiments/NAME.py           all runs; records the results
    python experiments/NAME.py --quick   a small version; records nothing

An interrupted experiment goes on where it stopped: finished runs wait in
experiments/.partial until the record is written.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from datetime import date
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from vit_lessons import recorded

ROOT = Path(__file__).parents[1]
PARTIAL = Path(__file__).parent / ".partial"
PACKAGES = ("torch", "torchvision", "scikit-learn", "vit-lessons")

Settings = dict[str, Any]
Run = Callable[..., dict[str, float]]


def record(
    script: str,
    run: Run,
    configurations: list[Settings],
    *,
    quick: tuple[list[Settings], dict[str, Any]],
    seeds: int | Callable[[Settings], int] = 5,
) -> None:
    """Run each configuration with each seed, on all cores, and record it.

    Args:
        script: The path of the script, __file__.
        run: Called with seed and the settings of a configuration; returns
            what it measured, by name.
        configurations: The settings of each configuration.
        quick: The configurations of --quick, and the settings that replace
            theirs there.
        seeds: Runs of each configuration, or a function that tells them.
    """
    name = Path(script).stem
    parser = argparse.ArgumentParser(description=f"The experiment {name}.")
    parser.add_argument("--quick", action="store_true", help="record nothing")
    if parser.parse_args().quick:
        few, smaller = quick
        for settings in few:
            smaller_settings = settings | smaller
            print(smaller_settings, run(seed=0, **smaller_settings))
        return
    _refuse_uncommitted_code()
    commit = _git("rev-parse", "HEAD")
    jobs = [
        {"settings": settings, "seed": seed}
        for settings in configurations
        for seed in range(seeds(settings) if callable(seeds) else seeds)
    ]
    partial = PARTIAL / f"{name}-{commit}.jsonl"
    runs = list(_run_all(run, jobs, partial))
    result = recorded.Record(
        name=name,
        command=f"python experiments/{name}.py",
        commit=commit,
        date=date.today().isoformat(),
        versions={"python": platform.python_version()}
        | {package: version(package) for package in PACKAGES},
        hardware=_hardware(),
        seconds=round(sum(done.pop("seconds") for done in runs), 1),
        runs=runs,
    )
    path = recorded.FOLDER / f"{name}.json"
    lines = json.dumps(asdict(result) | {"runs": []}, indent=1)
    rows = ",\n  ".join(json.dumps(done) for done in runs)
    path.write_text(
        lines.replace('"runs": []', f'"runs": [\n  {rows}\n ]') + "\n", "utf-8"
    )
    partial.unlink()
    print(f"recorded in {path.relative_to(ROOT)}")


def _run_all(run: Run, jobs: list[dict], partial: Path) -> Iterator[dict]:
    """Run the jobs that no earlier call has finished; all, in their order."""
    partial.parent.mkdir(exist_ok=True)
    done: dict[str, dict] = {}
    if partial.is_file():
        for line in partial.read_text("utf-8").splitlines(keepends=True):
            if line.endswith("\n"):  # else it was being written
                entry = json.loads(line)
                done[_key(entry)] = entry
        lines = "".join(json.dumps(entry) + "\n" for entry in done.values())
        partial.write_text(lines, "utf-8")
    left = [job for job in jobs if _key(job) not in done]
    with (
        ProcessPoolExecutor(os.cpu_count(), get_context("spawn")) as pool,
        partial.open("a", encoding="utf-8") as file,
        tqdm(total=len(jobs), initial=len(done), unit="run") as bar,
    ):
        for future in as_completed([pool.submit(_one, run, j) for j in left]):
            entry = future.result()
            done[_key(entry)] = entry
            file.write(json.dumps(entry) + "\n")
            file.flush()
            bar.update()
    for job in jobs:
        yield done[_key(job)]


def _one(run: Run, job: dict[str, Any]) -> dict[str, Any]:
    torch.set_num_threads(1)  # one run a core
    start = time.perf_counter()
    results = run(seed=job["seed"], **job["settings"])
    seconds = time.perf_counter() - start
    return job | {"results": results, "seconds": seconds}


def _key(job: dict[str, Any]) -> str:
    return json.dumps([job["settings"], job["seed"]], sort_keys=True)


def _git(*arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout.strip()


def _refuse_uncommitted_code() -> None:
    changed = _git("status", "--porcelain", "--", "vit_lessons", "experiments")
    code = [line for line in changed.splitlines() if line.endswith(".py")]
    if code:
        raise SystemExit(
            "commit these first, so that the record can name the commit:\n"
            + "\n".join(code)
        )


def _hardware() -> str:
    names = [f"{os.cpu_count()} cores, {platform.machine()}"]
    info = Path("/proc/cpuinfo")
    if info.is_file():
        models = [
            line.partition(":")[2].strip()
            for line in info.read_text().splitlines()
            if line.startswith("model name")
        ]
        names += models[:1]
    if torch.cuda.is_available():
        names.append(torch.cuda.get_device_name())
    return ", ".join(names)
