"""The package as a whole: names, dependencies, installation."""

import ast
import importlib
import json
import re
import shutil
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

import nbformat
import pytest
import sync_notebooks

import vit_lessons

ROOT = sync_notebooks.ROOT
CHAPTERS = {
    path.stem[3:]: int(path.stem[:2])
    for path in sorted((ROOT / "notebooks").glob("*.ipynb"))
}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
SUPPORT = {
    "checkpoint",
    "checks",
    "data",
    "download",
    "explorer",
    "models",
    "plotting",
    "procedural",
    "progress",
    "recorded",
    "weights",
    "window_explorer",
}


def public_names(module):
    return importlib.import_module(f"vit_lessons.{module}").__all__


def test_public_names_are_unique_across_the_package():
    names = [n for m in (*CHAPTERS, *SUPPORT) for n in public_names(m)]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("module", CHAPTERS)
def test_the_package_offers_every_name_of_a_chapter(module):
    source = importlib.import_module(f"vit_lessons.{module}")
    for name in source.__all__:
        assert getattr(vit_lessons, name) is getattr(source, name)


@pytest.mark.parametrize("module", CHAPTERS)
def test_the_docstring_of_the_package_is_its_table_of_contents(module):
    (names,) = re.findall(
        rf"(?m)^Chapter {CHAPTERS[module]:02d}, {module}: (.+(?:\n    .+)*)$",
        vit_lessons.__doc__,
    )
    assert sorted(re.split(r",\s+", names)) == sorted(public_names(module))


@pytest.mark.parametrize("module", CHAPTERS)
def test_a_chapter_imports_from_earlier_chapters_only(module):
    path = ROOT / "vit_lessons" / f"{module}.py"
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            package, _, other = node.module.partition(".")
            if package == "vit_lessons" and other not in SUPPORT:
                assert CHAPTERS[other] < CHAPTERS[module]


@pytest.mark.parametrize("module", CHAPTERS)
def test_every_public_docstring_gives_arguments_and_shapes_or_errors(module):
    for name in public_names(module):
        definition = getattr(vit_lessons, name)
        if callable(definition):
            assert "Args:" in definition.__doc__
            assert {"Raises:", "Shape:"} & set(definition.__doc__.split())


def test_the_package_is_imported_without_what_few_need():
    """torchvision alone would nearly double the time."""
    code = "import sys, vit_lessons; print(*sys.modules, sep=chr(10))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    loaded = {*done.stdout.splitlines()}
    assert {"torch", "vit_lessons.weights"} <= loaded
    assert not {"torchvision", "sklearn", "timm", "torch._dynamo"} & loaded


def test_the_package_pins_no_upper_version():
    for requirement in PROJECT["dependencies"]:
        assert re.fullmatch(r"[\w-]+>=[\d.]+", requirement)


def test_the_lock_holds_names_and_versions_only():
    lines = (ROOT / "requirements.lock").read_text("utf-8").splitlines()
    assert all(re.fullmatch(r"[\w.-]+==[\w.+]+", line) for line in lines)
    assert {"torch==2.14.1", "torchvision==0.29.1"} <= set(lines)


def test_the_lock_holds_every_direct_dependency():
    locked = {
        line.partition("==")[0].lower().replace("_", "-")
        for line in (ROOT / "requirements.lock").read_text().splitlines()
    }
    files = ("book/requirements.txt", "tests/requirements.txt")
    lines = [*PROJECT["dependencies"]]
    for name in files:
        lines += (ROOT / name).read_text("utf-8").splitlines()
    wanted = {
        re.match(r"[\w-]+", line)[0].lower()
        for line in lines
        if line and not line.startswith("#")
    }
    assert wanted - locked == set()


def site_packages(environment):
    (folder,) = environment.glob("lib/python*/site-packages")
    return folder


@pytest.fixture
def colab(tmp_path_factory):
    """Python with all that is installed here, except this package."""
    environment = tmp_path_factory.mktemp("colab") / "env"
    venv.create(environment, with_pip=True, symlinks=True)
    ours = re.compile(r"(__editable__.*|_)?vit_lessons.*|pip.*|_distutils.*")
    there = site_packages(environment)
    for entry in Path(pytest.__file__).parent.parent.iterdir():
        link = there / entry.name
        if not ours.match(entry.name) and not link.exists():
            link.symlink_to(entry)
    return environment


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"  # the build leaves files behind
    ignore = shutil.ignore_patterns(".*", "_build", "build", "*.egg-info")
    shutil.copytree(ROOT, source, ignore=ignore)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"]
    options = ["--no-build-isolation", "--wheel-dir", str(folder)]
    subprocess.run([*command, *options, str(source)], check=True)
    (path,) = folder.glob("*.whl")
    return path


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
@pytest.mark.parametrize("chapter", ["04_attention", "06_encoder_block"])
def test_a_notebook_alone_installs_the_package_as_on_colab(
    colab, wheel, tmp_path, chapter
):
    python = str(colab / "bin/python")
    versions = (
        "import torch, torchvision, numpy, matplotlib as m; print([p."
        "__version__ for p in (torch, torchvision, numpy, m)])"
    )

    def run(*command):
        return subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True
        )

    before = run(python, "-c", versions).stdout
    assert run(python, "-c", "import vit_lessons").returncode == 1
    notebook = nbformat.read(
        ROOT / "notebooks" / f"{chapter}.ipynb", as_version=4
    )
    url = "git+" + sync_notebooks.repository()["url"]
    for cell in notebook.cells:
        cell.source = cell.source.replace(url, str(wheel))
    nbformat.write(notebook, tmp_path / "chapter.ipynb")
    script = (
        "import nbformat, nbclient; n = nbformat.read('chapter.ipynb', 4); "
        "nbclient.NotebookClient(n, timeout=300, kernel_name='here').execute()"
    )
    kernel = tmp_path / "jupyter/kernels/here"
    kernel.mkdir(parents=True)
    argv = [python, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec = {"argv": argv, "display_name": "here", "language": "python"}
    (kernel / "kernel.json").write_text(json.dumps(spec))
    done = run(
        "env", f"JUPYTER_PATH={tmp_path / 'jupyter'}", python, "-c", script
    )
    assert done.returncode == 0, done.stderr
    where = run(python, "-c", "import vit_lessons; print(vit_lessons.__file__)")
    assert str(colab) in where.stdout
    assert run(python, "-c", versions).stdout == before
