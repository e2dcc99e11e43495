"""Show what models cost and what they reach, as one table.

The directive `cost-table` has a row for each line of its content:

    name | model in the record | accuracy | learned from | source

It fills in the parameters and multiply-adds that experiments/model_cost.py
counted and recorded.
"""

from __future__ import annotations

import json
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

HEAD = """
| Model | Parameters (millions) | Multiply-adds (billions) | Top-1 (%) \
| Learned from | Source |
|:-|-:|-:|-:|:-|:-|
"""


class CostTable(SphinxDirective):
    """Models with their counted cost and their published accuracy."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        root = Path(self.env.srcdir)
        path = root / "vit_lessons" / "recorded" / "model_cost.json"
        self.env.note_dependency(str(path))
        record = json.loads(path.read_text(encoding="utf-8"))
        counted = {
            run["settings"]["model"]: run["results"] for run in record["runs"]
        }
        rows = []
        for line in self.content:
            cells = [cell.strip() for cell in line.split("|")]
            if len(cells) != 5 or cells[1] not in counted:
                raise self.error(
                    f"a row must be NAME | one of {[*counted]} | ACCURACY | "
                    f"DATA | SOURCE, got {line!r}"
                )
            name, model, *published = cells
            millions = counted[model]["parameters"] / 1e6
            billions = counted[model]["multiply_adds"] / 1e9
            cells = [name, f"{millions:.1f}", f"{billions:.1f}", *published]
            rows.append(f"| {' | '.join(cells)} |")
        return self.parse_text_to_nodes(HEAD.strip() + "\n" + "\n".join(rows))


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("cost-table", CostTable)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
