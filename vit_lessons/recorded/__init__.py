"""Recorded results of experiments that take too long for a notebook.

Each file NAME.json beside this module was written by experiments/NAME.py.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

__all__ = ["Record", "load"]

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Record:
    """What an experiment measured, and how to measure it again.

    Args:
        name: Name of the experiment.
        command: The command that made this record.
        commit: The commit of this repository that it ran at.
        date: The day on which it ended, as year-month-day.
        versions: Versions of Python and of the packages that matter.
        hardware: The machine.
        seconds: Seconds that all runs took, added up.
        runs: One entry for each run: its "settings", its "seed" and its
            "results".
    """

    name: str
    command: str
    commit: str
    date: str
    versions: dict[str, str]
    hardware: str
    seconds: float
    runs: list[dict[str, Any]]

    def values(self, result: str, **settings: Any) -> list[float]:
        """One result for each seed, of the runs with these settings.

        Args:
            result: What was measured, for example "accuracy".
            settings: As many settings as it takes to tell these runs from all
                others, for example pool="cls".

        Raises:
            ValueError: No run has these settings, or the runs that have them
                differ in another one.
        """
        found = [
            run
            for run in self.runs
            if settings.items() <= run["settings"].items()
            and result in run["results"]
        ]
        kinds = [run["settings"] for run in found]
        if not found or any(kind != kinds[0] for kind in kinds):
            raise ValueError(
                "result and settings must name runs that differ in the seed "
                f"alone, got {result!r} and {settings}; a run of {self.name} "
                f"is {self.runs[0]}"
            )
        return [run["results"][result] for run in found]

    def mean_and_std(self, result: str, **settings: Any) -> tuple[float, float]:
        """Mean and standard deviation over the seeds of values()."""
        values = self.values(result, **settings)
        return mean(values), stdev(values)


def load(name: str) -> Record:
    """Load a recorded result.

    Args:
        name: Name of the experiment, for example "class_token".

    Raises:
        ValueError: There is no record of this name.
    """
    path = FOLDER / f"{name}.json"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in FOLDER.glob("*.json")))
        raise ValueError(f"name must be one of {known}, got {name!r}")
    return Record(**json.loads(path.read_text("utf-8")))
