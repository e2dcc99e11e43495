"""Guards of the notebooks, each shown to find the fault it is there for.

nbval proves that the stored outputs are what the cells print. The guards
here hold what nbval does not see.
"""

import re
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import nbformat
import pytest
import sync_notebooks
from ledger import NO_MEASUREMENT, NUMBER, UNIT, claimed_numbers, numbers

ROOT = sync_notebooks.ROOT
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SECTIONS = [
    "What you will learn",
    "What goes wrong",
    "In the paper and in other code",
    "Exercises",
    "Summary",
    "References",
]
# A path of the machine on which the notebook was run.
LOCAL_PATH = re.compile(
    r"(?<![\w.:/])/(?:home|root|tmp|usr|opt|var|work|mnt|content|Users)/"
    r"|[A-Z]:\\\\|site-packages|ipykernel_\d"
)
TWO_SENTENCES = re.compile(r"[a-z)`*$][.!?] +[A-Z]")
MYST = re.compile(r"^\s*(?:```|:::+) *\{|\{[\w:-]+\}`", re.MULTILINE)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def tags(cell):
    return cell.metadata.get("tags", [])


def outputs(notebook):
    for cell in code_cells(notebook):
        for output in cell.outputs:
            yield cell, output


def text_lines(notebook, *, tables=False):
    """Lines of prose: no formulas, headings or code; lists only with tables."""
    for cell in notebook.cells:
        if cell.cell_type == "markdown" and not sync_notebooks.is_badge(cell):
            prose = re.sub(r"(?s)\$\$.*?\$\$|```.*?```", "", cell.source)
            for line in prose.splitlines():
                if line.startswith(("|", "- ")) <= tables and line[:1] != "#":
                    yield line


def headings(notebook):
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            yield from re.findall(r"(?m)^(#+) +(.+)$", cell.source)


def executed_in_order(notebook):
    counts = [cell.execution_count for cell in code_cells(notebook)]
    if counts != list(range(1, len(counts) + 1)):
        yield f"code cells are numbered {counts}"


def errors_are_tagged(notebook):
    for cell, output in outputs(notebook):
        if output.output_type == "error":
            if "raises-exception" not in tags(cell):
                yield f"{output.ename} in a cell without raises-exception"
            if output.traceback != [f"{output.ename}: {output.evalue}"]:
                yield "the traceback is not cut to its last line"


def tagged_cells_raise(notebook):
    for cell in code_cells(notebook):
        raised = any(o.output_type == "error" for o in cell.outputs)
        if "raises-exception" in tags(cell) and not raised:
            yield f"no error in a cell that is tagged so: {cell.source}"


def outputs_are_clean(notebook):
    if "widgets" in notebook.metadata:
        yield "the notebook stores widget state"
    for _, output in outputs(notebook):
        if output.get("name") == "stderr":
            yield f"a cell writes to stderr: {output.text}"
        data = output.get("data", {})
        if any("widget" in kind for kind in data):
            yield "an output is a widget"
        text = str(output.get("text", "")) + str(
            [part for kind, part in data.items() if "image" not in kind]
        )
        if LOCAL_PATH.search(text + str(output.get("evalue", ""))):
            yield f"an output holds a local path: {text}"


def figures_have_alt_text(notebook):
    for cell, output in outputs(notebook):
        if any(kind.startswith("image/") for kind in output.get("data", {})):
            image = cell.metadata.get("mystnb", {}).get("image", {})
            if len(image.get("alt", "").split()) < 5:
                yield f"a figure without alt text: {cell.source[:60]}"


def checks_follow_definitions(notebook):
    cells = notebook.cells
    for number, cell in enumerate(cells):
        name = DEFINITIONS.get(cell.source)
        after = cells[number + 1 : number + 3]
        if name and not any(
            name in c.source for c in after if c.cell_type == "code"
        ):
            yield f"{name} is not used within two cells"


def at_most_two_code_cells_in_a_row(notebook):
    kinds = "".join(cell.cell_type[0] for cell in notebook.cells)
    if "ccc" in kinds:
        yield "three code cells without a word between them"


def headings_are_in_order(notebook):
    found = list(headings(notebook))
    levels = [len(marks) for marks, _ in found]
    if levels[:1] != [1] or levels.count(1) != 1:
        yield "the title must be the first and only heading of level 1"
    for before, after in pairwise(levels):
        if after > before + 1:
            yield f"a heading skips from level {before} to {after}"
    sections = [text for _, text in found if text in SECTIONS]
    if sections != SECTIONS:
        yield f"sections must be {SECTIONS}, are {sections}"


def one_sentence_a_line(notebook):
    for line in text_lines(notebook):
        if TWO_SENTENCES.search(line):
            yield f"two sentences in one line: {line}"


def numbers_are_printed_or_claimed(notebook, claimed=frozenset()):
    """Is each measured number of the text in an output, or in the ledger?

    Whole numbers without a unit are not looked at: most of them count. A
    decimal number without a unit may also stand in the code.
    """
    printed = " ".join(o.get("text", "") for _, o in outputs(notebook))
    known = numbers(printed) | claimed
    code = " ".join(cell.source for cell in code_cells(notebook))
    in_code = set(re.findall(r"\d+\.\d+", code))
    for line in text_lines(notebook, tables=True):
        prose = NO_MEASUREMENT.sub("", line)
        for match in NUMBER.finditer(prose):
            with_unit = UNIT.match(prose, match.end())
            if match[0] not in known | (set() if with_unit else in_code):
                yield f"{match[0]} is neither printed nor claimed: {line}"


def markdown_is_plain(notebook):
    for cell in notebook.cells:
        if cell.cell_type == "markdown" and MYST.search(cell.source):
            yield f"Colab shows this raw: {cell.source[:60]}"


def small(notebook):
    size = len(nbformat.writes(notebook).encode())
    if size > 500_000:
        yield f"the notebook has {size} bytes"


GUARDS = [
    executed_in_order,
    errors_are_tagged,
    tagged_cells_raise,
    outputs_are_clean,
    figures_have_alt_text,
    checks_follow_definitions,
    at_most_two_code_cells_in_a_row,
    headings_are_in_order,
    one_sentence_a_line,
    markdown_is_plain,
    small,
]
DEFINITIONS = {
    text: name
    for path in NOTEBOOKS
    for name, text in sync_notebooks.definitions(
        (ROOT / "vit_lessons" / f"{path.stem[3:]}.py").read_text("utf-8")
    ).items()
}


def read(path):
    return nbformat.read(path, as_version=4)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_each_number_of_a_chapter_is_printed_or_in_the_ledger(path):
    claimed = claimed_numbers(path.stem)
    found = numbers_are_printed_or_claimed(read(path), claimed)
    assert list(found) == []


@pytest.mark.parametrize("guard", GUARDS, ids=lambda guard: guard.__name__)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_notebook_passes_the_guard(path, guard):
    assert list(guard(read(path))) == []


def test_package_notebooks_and_links_are_in_step():
    assert sync_notebooks.sync(ROOT, check=True) == []


# From here on: each guard finds a fault that was planted.


def first(notebook, condition):
    return next(cell for cell in notebook.cells if condition(cell))


def definition(notebook, name):
    return first(notebook, lambda cell: name in sync_notebooks.cell_names(cell))


def figure(notebook):
    return first(notebook, lambda c: "image" in c.metadata.get("mystnb", {}))


def plant_unexecuted_cell(notebook):
    code_cells(notebook)[3].execution_count = None


def plant_cells_out_of_order(notebook):
    one, two = code_cells(notebook)[3:5]
    one.execution_count, two.execution_count = 5, 4


def plant_untagged_error(notebook):
    cell = first(notebook, lambda c: "raises-exception" in tags(c))
    cell.metadata.tags = []


def plant_full_traceback(notebook):
    cell = first(notebook, lambda c: "raises-exception" in tags(c))
    cell.outputs[0].traceback = ["File x.py, line 3", "ValueError: no"]


def plant_tag_without_error(notebook):
    code_cells(notebook)[2].metadata.tags = ["raises-exception"]


def plant_output(**fields):
    def plant(notebook):
        output = nbformat.v4.new_output("stream", **fields)
        code_cells(notebook)[2].outputs.append(output)

    return plant


def plant_widget_state(notebook):
    notebook.metadata["widgets"] = {}


def plant_widget(notebook):
    data = {"application/vnd.jupyter.widget-view+json": {}}
    output = nbformat.v4.new_output("display_data", data)
    code_cells(notebook)[2].outputs.append(output)


def plant_no_alt_text(notebook):
    del figure(notebook).metadata.mystnb["image"]


def plant_short_alt_text(notebook):
    figure(notebook).metadata.mystnb.image.alt = "figure 1"


def plant_no_check(notebook):
    number = notebook.cells.index(definition(notebook, "patchify"))
    del notebook.cells[number + 1]


def plant_code(notebook):
    cell = nbformat.v4.new_code_cell("pass")
    notebook.cells[4:4] = [cell, cell]


def plant_text(text):
    def plant(notebook):
        notebook.cells.append(nbformat.v4.new_markdown_cell(text))

    return plant


def plant_missing_section(notebook):
    cell = first(notebook, lambda c: "## Exercises" in c.source)
    cell.source = cell.source.replace("## Exercises", "## Homework")


FAULTS = [
    (executed_in_order, plant_unexecuted_cell),
    (executed_in_order, plant_cells_out_of_order),
    (errors_are_tagged, plant_untagged_error),
    (errors_are_tagged, plant_full_traceback),
    (tagged_cells_raise, plant_tag_without_error),
    (outputs_are_clean, plant_output(name="stderr", text="a warning")),
    (outputs_are_clean, plant_output(text="saved in /home/me/model.pt")),
    (outputs_are_clean, plant_widget_state),
    (outputs_are_clean, plant_widget),
    (figures_have_alt_text, plant_no_alt_text),
    (figures_have_alt_text, plant_short_alt_text),
    (checks_follow_definitions, plant_no_check),
    (at_most_two_code_cells_in_a_row, plant_code),
    (headings_are_in_order, plant_text("# Another title")),
    (headings_are_in_order, plant_text("## Part\n\n#### Detail")),
    (headings_are_in_order, plant_missing_section),
    (one_sentence_a_line, plant_text("This is one. This is another.")),
    (numbers_are_printed_or_claimed, plant_text("It reaches 98.7 here.")),
    (numbers_are_printed_or_claimed, plant_text("- It reaches 83 % here.")),
    (numbers_are_printed_or_claimed, plant_text("It gains 0.4 points.")),
    (
        numbers_are_printed_or_claimed,
        plant_text("They have [98.7 %](https://arxiv.org/abs/2010.11929)."),
    ),
    (numbers_are_printed_or_claimed, plant_text("It saw 37 million images.")),
    (
        numbers_are_printed_or_claimed,
        plant_text("There are 1,234,567 of them."),
    ),
    (markdown_is_plain, plant_text("```{note}\nRaw on Colab.\n```")),
    (markdown_is_plain, plant_text("See {cite}`vit`.")),
    (small, plant_text("x" * 500_000)),
]


@pytest.mark.parametrize(
    ("guard", "plant"), FAULTS, ids=lambda function: function.__name__
)
def test_the_guard_finds_the_planted_fault(guard, plant):
    notebook = read(NOTEBOOKS[0])
    plant(notebook)
    assert list(guard(notebook)) != []


@pytest.fixture
def project(tmp_path):
    """A copy of what sync_notebooks reads and writes."""
    for name in ("vit_lessons", "notebooks"):
        ignore = shutil.ignore_patterns("__pycache__", ".*")
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignore)
    for name in ("_config.yml", *sync_notebooks.LINKED_FILES):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def edit(path, old, new):
    text = path.read_text("utf-8")
    assert old in text
    path.write_text(text.replace(old, new), "utf-8")


def edit_cell(path, cell_of, change):
    notebook = read(path)
    cell = cell_of(notebook)
    cell.source = change(cell.source)
    nbformat.write(notebook, path)


def in_step(project):
    return sync_notebooks.sync(project, check=True)


CHAPTER = "notebooks/01_patch_embedding.ipynb"


def patchify_cell(notebook):
    return definition(notebook, "patchify")


def test_a_changed_comment_in_a_definition_is_found(project):
    edit_cell(
        project / CHAPTER,
        lambda notebook: definition(notebook, "PatchEmbed"),
        lambda source: source.replace("# (B, N, D)", "# tokens"),
    )
    assert in_step(project) == [CHAPTER]


def test_a_change_of_the_package_is_found(project):
    module = project / "vit_lessons/patch_embedding.py"
    edit(module, "Cut images into patches", "Slice images into patches")
    assert in_step(project) == [CHAPTER]


def test_a_missing_definition_is_found(project):
    edit_cell(project / CHAPTER, patchify_cell, lambda source: "pass")
    with pytest.raises(sync_notebooks.SyncError, match="define each of"):
        in_step(project)


def test_an_extra_statement_in_a_definition_cell_is_found(project):
    edit_cell(
        project / CHAPTER, patchify_cell, lambda source: source + "\n\nprint(1)"
    )
    with pytest.raises(sync_notebooks.SyncError, match="nothing else"):
        in_step(project)


def test_a_code_cell_that_changed_after_the_run_is_found(project):
    edit_cell(
        project / CHAPTER,
        lambda notebook: code_cells(notebook)[2],
        lambda source: source + "\n# changed",
    )
    assert in_step(project) == [CHAPTER]


def test_a_cell_without_its_output_is_run_again(project):
    notebook = read(project / CHAPTER)
    plant_unexecuted_cell(notebook)
    nbformat.write(notebook, project / CHAPTER)
    assert in_step(project) == [CHAPTER]


@pytest.mark.parametrize("where", ["colab.research.google.com", "%pip install"])
def test_a_link_to_another_repository_is_found(project, where):
    edit_cell(
        project / CHAPTER,
        lambda notebook: first(notebook, lambda c: where in c.source),
        lambda source: source.replace(
            sync_notebooks.repository()["slug"], "somebody/else"
        ),
    )
    assert in_step(project) == [CHAPTER]


def test_one_line_of_the_config_moves_every_link(project):
    before = sync_notebooks.repository()
    edit(
        project / "_config.yml",
        before["url"],
        "https://github.com/someone/vit.course",
    )
    files = [*sync_notebooks.LINKED_FILES]
    notebooks = [f"notebooks/{path.name}" for path in NOTEBOOKS]
    assert in_step(project) == files + notebooks
    for name in files:
        path = project / name
        text = sync_notebooks.relink(path.read_text("utf-8"), project)
        assert before["slug"] not in text
        assert "someone/vit.course" in text


def test_sync_mends_a_definition_and_runs_the_notebook(project):
    for path in project.glob("notebooks/*.ipynb"):
        path.unlink()
    (project / "vit_lessons/tiny.py").write_text(
        '__all__ = ["double"]\n\n\ndef double(x):\n    return 2 * x\n'
    )
    cells = [
        nbformat.v4.new_code_cell(sync_notebooks.SETUP_TITLE),
        nbformat.v4.new_code_cell("def double(x):\n    return x + x + 1"),
        nbformat.v4.new_code_cell("print(double(4), flush=True)\nprint('end')"),
        nbformat.v4.new_code_cell("print(undefined)"),
    ]
    cells[3].metadata.tags = ["raises-exception"]
    path = project / "notebooks/99_tiny.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    assert sync_notebooks.sync(project, check=False)
    notebook = read(path)
    assert notebook.cells[1].source == "def double(x):\n    return 2 * x"
    assert [out.text for out in notebook.cells[2].outputs] == ["8\nend\n"]
    assert list(executed_in_order(notebook)) == []
    assert list(errors_are_tagged(notebook)) == []
    assert sync_notebooks.sync(project, check=True) == []


@pytest.mark.parametrize(("stored", "passes"), [("7", True), ("8", False)])
def test_nbval_finds_a_wrong_stored_output(tmp_path, stored, passes):
    cell = nbformat.v4.new_code_cell("print(3 + 4)", execution_count=1)
    cell.outputs = [nbformat.v4.new_output("stream", text=f"{stored}\n")]
    notebook = nbformat.v4.new_notebook(
        cells=[cell], metadata=sync_notebooks.METADATA
    )
    nbformat.write(notebook, tmp_path / "small.ipynb")
    command = [sys.executable, "-m", "pytest", "--nbval", "-c", "/dev/null"]
    run = subprocess.run(
        [*command, str(tmp_path / "small.ipynb")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert (run.returncode == 0) is passes, run.stdout


def test_no_chapter_is_without_notebook_and_no_notebook_without_chapter():
    toc = (ROOT / "_toc.yml").read_text("utf-8")
    listed = re.findall(r"file: notebooks/(\S+)", toc)
    assert listed == [Path(path).stem for path in NOTEBOOKS]
