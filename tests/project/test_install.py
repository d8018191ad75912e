"""The build's own logic; .ci/install_check.sh installs for real."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
from pathlib import Path

import pytest
import revdeq_build
import revdeq_compiler
import revdeq_nvcc
import revdeq_torch
import torch
from setuptools.errors import CompileError

import revdeq_kernels
from revdeq_kernels.core import libraries
from tests import ROOT
from tools import prerequisites

KNOWN_ARCHS = {"75", "80", "90", "100", "120"}


def test_the_version_is_stated_once():
    assert re.fullmatch(r"\d+\.\d+\.\d+", revdeq_kernels.__version__)
    assert libraries.build_info()["version"] == revdeq_kernels.__version__
    assert importlib.metadata.version("revdeq-kernels") == revdeq_kernels.__version__
    for name in ("pyproject.toml", "setup.py", "constraints.txt"):
        assert f'"{revdeq_kernels.__version__}"' not in (ROOT / name).read_text()


def test_the_pythons_are_the_same_everywhere():
    """What is required, what the wheel is declared for, tried on, and what the documents say."""
    text = (ROOT / "pyproject.toml").read_text()
    declared = re.findall(r'Python :: (3\.\d+)"', text)
    assert re.findall(r'requires-python = ">=(.*)"', text) == declared[:1]
    workflow = (ROOT / ".github" / "workflows" / "wheels.yml").read_text()
    assert set(re.findall(r'"(3\.\d+)"', workflow.split("matrix:")[1].split("\n")[1])) == {
        *declared
    }
    documented = (ROOT / "docs" / "compatibility.md").read_text()
    assert set(re.findall(r"\b3\.1\d\b", documented)) >= {*declared}


def test_every_development_tool_is_pinned():
    text = (ROOT / "pyproject.toml").read_text()
    tools = set(
        re.findall(r'^  "([\w-]+)[";]', text.split("\ndev = [")[1].split("\n]")[0], re.MULTILINE)
    )
    pins = re.findall(r"^([\w-]+)==", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert set(pins) == tools | {"torch", "triton"}


@pytest.mark.parametrize(
    ("asked", "chosen"),
    [
        ("", ["8.0", "9.0a", "10.0+PTX"]),
        ("9.0a", ["9.0a"]),
        (" 8.0;9.0a 12.0+PTX ", ["8.0", "9.0a", "12.0+PTX"]),
    ],
)
def test_architectures(asked, chosen):
    assert revdeq_nvcc.choose_archs(asked, KNOWN_ARCHS) == chosen


def test_the_default_leaves_out_what_an_old_nvcc_does_not_know():
    assert revdeq_nvcc.choose_archs("", {"75", "80", "90"}) == ["8.0", "9.0a"]


@pytest.mark.parametrize("wrong", ["Hopper", "9", "sm_90", "8.0,9.0", "13.7", "9.0+SASS"])
def test_an_architecture_that_cannot_be_built_is_refused_by_name(wrong):
    with pytest.raises(CompileError, match=re.escape(f"got '{wrong}'")):
        revdeq_nvcc.choose_archs(f"8.0;{wrong}", KNOWN_ARCHS)


def write_nvcc(folder: Path) -> Path:
    """A stand-in that answers what the build asks of nvcc."""
    nvcc = folder / "bin" / "nvcc"
    nvcc.parent.mkdir()
    nvcc.write_text(
        "#!/bin/sh\necho compute_80 compute_90\necho Cuda tools, release 12.6, V12.6.1\n"
    )
    nvcc.chmod(0o755)
    return nvcc


def test_nvcc_of_cuda_home_is_asked_what_it_is(tmp_path, monkeypatch):
    nvcc = write_nvcc(tmp_path)
    monkeypatch.setenv("REVDEQ_BUILD_CUDA", "1")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.0;9.0a+PTX")
    found = revdeq_nvcc.find_nvcc()
    assert found == revdeq_nvcc.Nvcc(str(nvcc), "12.6", ("8.0", "9.0a+PTX"))
    assert found is not None
    assert found.gencode() == [
        "-gencode=arch=compute_80,code=sm_80",
        "-gencode=arch=compute_90a,code=sm_90a",
        "-gencode=arch=compute_90a,code=compute_90a",
    ]


def test_without_nvcc(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.setenv("REVDEQ_BUILD_CUDA", "auto")
    assert revdeq_nvcc.find_nvcc() is None
    monkeypatch.setenv("REVDEQ_BUILD_CUDA", "1")
    with pytest.raises(CompileError, match=r"no nvcc in .*REVDEQ_BUILD_CUDA=0"):
        revdeq_nvcc.find_nvcc()


def test_nvcc_that_is_not_wanted_is_not_used(tmp_path, monkeypatch):
    write_nvcc(tmp_path)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.setenv("REVDEQ_BUILD_CUDA", "0")
    assert revdeq_nvcc.find_nvcc() is None
    monkeypatch.setenv("REVDEQ_BUILD_CUDA", "yes")
    with pytest.raises(CompileError, match="expected auto, 0 or 1, got 'yes'"):
        revdeq_nvcc.find_nvcc()


def test_torch_is_found_where_the_build_is_isolated_from_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    folder, version = revdeq_torch.find_torch()
    assert folder.samefile(Path(torch.__file__).parent)
    assert version == torch.__version__
    assert revdeq_build.get_requires_for_build_wheel() == []
    assert revdeq_build.get_requires_for_build_editable() == []


def test_torch_is_asked_for_where_there_is_none(monkeypatch):
    monkeypatch.setattr(revdeq_build, "torch_folder", lambda: None)
    assert revdeq_build.get_requires_for_build_wheel() == ["torch>=2.11"]
    assert revdeq_build.get_requires_for_build_editable() == ["torch>=2.11"]
    assert revdeq_build.get_requires_for_build_sdist() == []


def test_an_old_torch_is_refused_with_the_remedy(tmp_path, monkeypatch):
    (tmp_path / "version.py").write_text("__version__ = '2.9.1+cu126'\n")
    monkeypatch.setattr(revdeq_torch, "torch_folder", lambda: tmp_path)
    with pytest.raises(CompileError, match=r"got torch 2.9.1\+cu126 .*pip install 'torch>=2.11'"):
        revdeq_torch.find_torch()


# ---- what is missing is asked for by name, before a download ----------------------------------


def test_a_missing_compiler_is_named_before_torch_is_asked_for(monkeypatch):
    monkeypatch.setattr(revdeq_build, "torch_folder", lambda: pytest.fail("too late"))
    monkeypatch.delenv("REVDEQ_BUILD_CPP", raising=False)
    monkeypatch.setenv("CXX", "/no/such/g++ -m64")
    with pytest.raises(CompileError, match=r"'/no/such/g\+\+ -m64' cannot be run .*apt install g"):
        revdeq_build.get_requires_for_build_wheel()


def test_a_compiler_of_an_older_cpp_is_told_apart(tmp_path, monkeypatch):
    compiler = tmp_path / "g++"
    compiler.write_text("#!/bin/sh\necho \"error: unrecognized option '-std=c++20'\" >&2\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    with pytest.raises(CompileError, match=r"need C\+\+20 .*does not compile: error: unrecognized"):
        revdeq_compiler.check_compiler()


def asked_for(root=ROOT, venv=ROOT / ".venv-none", headers=ROOT, compiler="sh"):
    return "\n".join(prerequisites.problems(root, venv, headers, compiler))


def test_what_make_needs_is_asked_for_at_once(tmp_path, monkeypatch):
    (tmp_path / "Python.h").touch()
    monkeypatch.delenv("REVDEQ_BUILD_CPP", raising=False)
    monkeypatch.setattr(prerequisites, "NEEDED_GB", 0.0)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    assert asked_for(headers=tmp_path) == ""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    text = asked_for(compiler="no-such-g++")
    assert re.search(r"apt install python3(\.\d+)?-venv python3(\.\d+)?-dev g\+\+$", text)
    assert "Python.h, which torch.compile" in text
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert "sudo apt update && sudo apt install" in asked_for(compiler="no-such-g++")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert "sudo" not in asked_for(compiler="no-such-g++")
    monkeypatch.setenv("REVDEQ_BUILD_CPP", "0")
    text = asked_for(compiler="no-such-g++")
    assert "-venv" in text and "g++" not in text and "-dev" not in text


def test_the_packages_are_those_that_the_documents_name():
    text = (ROOT / "docs" / "installing.md").read_text()
    (line,) = re.findall(r"apt install (.*)", text)
    assert {"make", "python3-venv", "python3-dev", "g++"} <= set(line.split())


def test_a_path_with_a_space_a_read_only_tree_and_a_full_disk(tmp_path, monkeypatch):
    (tmp_path / "Python.h").touch()
    text = asked_for(venv=tmp_path / "my files" / ".venv", headers=tmp_path)
    assert "contains a space" in text and "make VENV=/path" in text
    monkeypatch.setattr(prerequisites.os, "access", lambda path, mode: False)
    assert f"{ROOT} is read-only" in asked_for(headers=tmp_path)
    monkeypatch.setattr(prerequisites, "NEEDED_GB", 1e9)
    assert "GB are free there" in asked_for(headers=tmp_path)


def test_make_builds_again_when_a_variable_of_the_build_changes():
    """All that setup.py and its helpers read, except how many jobs they run."""
    files = [ROOT / "setup.py", *(ROOT / "build_backend").glob("*.py")]
    read = re.findall(r'environ\.get\("(\w+)"', "".join(file.read_text() for file in files))
    settings = re.findall(r"^BUILD_SETTINGS := (.*)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    known = set(re.findall(r"\$\((\w+)\)", settings[0])) | {"MAX_JOBS", "PATH", "CUDA_PATH"}
    assert set(read) <= known
