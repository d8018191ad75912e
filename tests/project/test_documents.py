"""The documents are correct: their Python runs, their commands exist, their links work."""

from __future__ import annotations

import importlib
import importlib.util
import os
import posixpath
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import ModuleType
from urllib.parse import unquote

import pytest
import torch

import revdeq_kernels
from bench.show import pictures
from tests.project.commands import check
from tests.project.documents import ROOT, Block, documents, having

PACKAGES = ("lightning", "memcnn", "peft", "revlib", "tensorboard", "torchdeq", "transformers")


def installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


NEEDS: dict[str, Callable[[], bool]] = {
    **{f"needs {name}": partial(installed, name) for name in PACKAGES},
    "needs cuda": torch.cuda.is_available,
}
"""Marks of blocks of code that run where this holds."""

SHELL = ("", "bash", "sh", "console")
JAX = "needs revdeq under JAX"
JAX_PYTHON = os.environ.get("BENCH_JAX_PYTHON")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Examples are small: a second thread waits more than it works."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
    if torch.distributed.is_initialized():  # an example that failed left it
        torch.distributed.destroy_process_group()


def can_run(block: Block) -> bool:
    return block.mark is None or (block.mark in NEEDS and bool(NEEDS[block.mark]()))


@pytest.mark.parametrize("name", having("python"))
def test_python(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In their order, as a reader would run them: a later one may use the names of an earlier."""
    monkeypatch.chdir(tmp_path)  # for what an example writes
    torch.manual_seed(0)
    module = ModuleType("example")
    monkeypatch.setitem(sys.modules, "example", module)  # Dynamo imports that of a function
    names = module.__dict__
    blocks = [block for block in documents()[name].blocks("python") if can_run(block)]
    if not blocks:
        pytest.skip("what this code needs is not installed")
    for block in blocks:
        lines = "\n" * (block.line - 1) + block.code  # so that errors name the document's lines
        exec(compile(lines, str(ROOT / name), "exec"), names)


@pytest.mark.skipif(JAX_PYTHON is None, reason="BENCH_JAX_PYTHON names no interpreter with revdeq")
def test_python_of_the_jax_library() -> None:
    assert JAX_PYTHON is not None
    blocks = [b for name in having("python") for b in documents()[name].blocks("python")]
    code = "\n".join(block.code for block in blocks if block.mark == JAX)
    assert code
    done = subprocess.run([JAX_PYTHON, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_block_is_looked_at() -> None:
    """What is no Python is shell, output or an equation; Python not run says what it needs."""
    blocks = [block for document in documents().values() for block in document.blocks()]
    assert {block.language for block in blocks} <= {"python", "math", *SHELL}
    assert {block.mark for block in blocks} <= {None, JAX, *NEEDS}


def test_a_link_that_names_tests_leads_to_them() -> None:
    found = 0
    for document in documents().values():
        for label, target in re.findall(r"\[((?:`test_\w+`(?:, )?)+)\]\(([^)#]+)", document.text):
            text = (ROOT / document.name).parent.joinpath(target).read_text(encoding="utf-8")
            for name in re.findall(r"test_\w+", label):
                assert f"def {name}(" in text or target.endswith(f"{name}.py"), (name, target)
                found += 1
    assert found > 15


def test_every_document_is_looked_at() -> None:
    assert {"README.md", "CONTRIBUTING.md", "bench/solver.md", "docs/api/solver.md"} <= {
        *documents()
    }
    python = {*having("python")}
    assert {"README.md", "docs/choosing.md", "docs/ops.md", "docs/from-jax.md"} <= python


@pytest.mark.parametrize("name", having(*SHELL))
def test_commands(name: str) -> None:
    for block in documents()[name].blocks(*SHELL):
        for line in block.code.splitlines():
            check(line, known=block.language != "")


@pytest.mark.parametrize("name", [*documents()])
def test_commands_within_lines(name: str) -> None:
    for span in documents()[name].spans:
        if re.match(r"(make|python -m) \S", span):
            check(span, known=True)


@pytest.mark.parametrize("name", [*documents()])
def test_links(name: str) -> None:
    for link in documents()[name].links:
        path, _, anchor = unquote(link).partition("#")
        target = posixpath.normpath(posixpath.join(posixpath.dirname(name), path)) if path else name
        assert (ROOT / target).exists(), link
        if anchor:
            assert target in documents() and anchor in documents()[target].anchors, link


@pytest.mark.parametrize("module", ["torch_revdeq", "torch_revdeq.models", "torch_revdeq.plot"])
def test_the_reference_has_every_public_name(module: str) -> None:
    text = "".join(document.text for document in documents().values())
    listed = {path.rpartition(".")[2] for path in re.findall(rf"^::: {module}\.(\S+)", text, re.M)}
    assert {*importlib.import_module(module).__all__} <= listed


TERMS = (
    "adjoint", "auxiliary losses", "cell", "classical cell", "copy_", "CUDA graph", "depth",
    "equilibrium", "equilibrium cell", "exact state", "fast weights", "forward solver",
    "functional", "gradient of the fixed point", "half step", "halting",
    "looped", "memories", "memory traffic", "op", "pair update", "phantom gradient",
    "precision cliff", "recurrent-depth", "recursive model", "regularization", "residual",
    "resources", "second derivative", "solve", "state", "statistics", "step", "stopping rule",
)  # fmt: skip
OTHER_FORMS = {
    "auxiliary losses": "aux",
    "gradient of the fixed point": "implicit gradient",
    "memories": "memory of a model",
}
"""Terms whose entry has another name."""


def test_the_glossary_has_the_terms_of_the_headings() -> None:
    """As whole words: in a heading of some page, and in a first column of the glossary."""
    pages = [d.text for name, d in documents().items() if name.startswith("docs/")]
    headings = " / ".join(re.findall(r"^#+ (.+)$", "\n".join(pages), re.MULTILINE)).lower()
    entries = re.findall(r"^\| (.+?) \|", documents()["docs/glossary.md"].text, re.MULTILINE)
    listed = " / ".join(entries).lower()
    for term in TERMS:
        assert re.search(rf"\b{term.lower()}s?\b", headings), term
        assert re.search(rf"\b{OTHER_FORMS.get(term, term).lower()}\b", listed), term


def test_the_readme_fits_on_two_screens() -> None:
    """Beside its tables of figures, which are generated."""
    generated = re.compile(r"<!-- (\w+):begin.*?<!-- \1:end.*?-->", re.DOTALL)
    text = generated.sub("", documents()["README.md"].text)
    assert len(text.splitlines()) <= 130


def test_the_readme_shows_its_figure_on_light_and_dark_pages() -> None:
    text = documents()["README.md"].text
    (picture,) = re.findall(r"<picture>.*?</picture>", text, re.DOTALL)
    shown = re.findall(r'(?:src|srcset)="([^"]+)"', picture)
    assert {*shown} == {pictures.PICTURES[0].path(dark=dark) for dark in (False, True)}
    assert text.index(picture) < 1000  # on the first screen


def test_the_citation_is_of_this_version() -> None:
    """And names the paper as README.md does."""
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {revdeq_kernels.__version__}\n" in citation
    text = documents()["README.md"].text
    assert f"version = {{{revdeq_kernels.__version__}}}" in text
    authors = re.findall(r"family-names: (\w+), given-names: (\w+)", citation)
    assert " and ".join(f"{last}, {first}" for last, first in authors) in text
    assert "2509.12917" in citation


def test_the_steps_to_a_kernel_name_files_that_hold_one() -> None:
    """docs/adding-a-kernel.md has `residual` as its example."""
    others = {"csrc/pass_ops.h", "CHANGELOG.md"}  # for other ops; what is not yet released
    others.add("tests/ptx/test_cuda_ops.py")  # reads the names of all ops
    others |= {"findings/triton_sixteen_bit_sums.sh", "findings/triton_division_by_constant.sh"}
    text = documents()["docs/adding-a-kernel.md"].text
    steps = re.findall(r"^\d+\. .*(?:\n   .*)*", text, re.MULTILINE)
    assert len(steps) == 8
    for step in steps:
        for path in re.findall(r"\]\(\.\./([^)]+)\)", step):
            if path not in others:
                text = path + (ROOT / path).read_text()
                assert "residual" in text.lower(), path


def test_the_layers_that_the_architecture_names_are_held_to() -> None:
    project = (ROOT / "pyproject.toml").read_text()
    text = documents()["docs/architecture.md"].text
    rows = re.findall(
        r"^\| \[(?:python/)?(bench|torch_revdeq|revdeq_kernels)/\]", text, re.MULTILINE
    )
    assert f"layers = {rows}".replace("'", '"') in project
