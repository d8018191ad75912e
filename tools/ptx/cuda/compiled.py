"""Compile csrc/cuda with nvcc, for a machine without a GPU.

The host code becomes a library whose launches are recorded (recorder.cpp); the kernels are compiled
to PTX. If the package's own build is up to date, its objects are used: the same host code, and the
PTX that they contain for future GPUs. Everything else is compiled once, with the flags of setup.py,
and cached under build/ptx.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

from tools.cuda.ptxas import readable

ROOT = Path(__file__).parents[3]
CUDA = ROOT / "csrc" / "cuda"
RECORDER = Path(__file__).with_name("recorder.cpp")
KEPT = ROOT / "build" / "ptx"
ARCHS = ("80", "90a", "100")
"""The architectures whose PTX is executed: those of the default build in setup.py."""

ENTRY = re.compile(r"^(?:\.(?:visible|weak) )?\.entry ([\w$]+)\(.*?^}", re.MULTILINE | re.DOTALL)


class NotCompiledError(Exception):
    """nvcc is missing, or failed."""


@cache
def nvcc() -> str:
    """The path of the compiler that setup.py finds; NotCompiledError if there is none."""
    _build_backend()
    from revdeq_nvcc import find_nvcc

    found = find_nvcc()
    if found is None:
        raise NotCompiledError("no nvcc (or REVDEQ_BUILD_CUDA=0): csrc/cuda cannot be compiled")
    return found.path


@cache
def known_archs() -> list[str]:
    """The architectures in ARCHS that nvcc supports; NotCompiledError as for `nvcc`."""
    command = [nvcc(), "--list-gpu-arch"]
    known = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return [arch for arch in ARCHS if f"compute_{arch.removesuffix('a')}" in known]


def host_library() -> Path:
    """The host code of csrc/cuda with the recorder, as a library."""
    recorder = _kept(f"recorder-{_key(RECORDER)}.o", lambda to: _nvcc("-c", RECORDER, "-o", to))
    parts = [recorder, *objects()]
    return _kept(f"host-{_key(*parts)}.so", lambda to: _link(parts, to))


def kernels(arch: str) -> dict[str, tuple[str, str]]:
    """The readable name of every kernel -> its mangled name and its PTX, as a separate module."""
    found: dict[str, tuple[str, str]] = {}
    for text in ptx_of_objects(objects(), arch) or compiled_ptx(arch):
        entries = list(ENTRY.finditer(text))
        if ".func" in text:
            raise NotImplementedError("a device function that was not inlined")
        head = text[: entries[0].start()]
        for entry, name in zip(entries, names([e[1] for e in entries]), strict=True):
            found[name] = entry[1], f"{head}{entry[0]}\n"
    return found


def names(mangled: list[str]) -> list[str]:
    """As in "half_step_kernel<Direction 0, float, float, float>".

    The name of the anonymous namespace differs between compilations.
    """
    return [name.removeprefix("revdeq::cuda::") for name in readable(mangled)]


# ---- objects and PTX -------------------------------------------------------------------------


def sources() -> list[Path]:
    """The files in csrc/cuda that contain kernels."""
    return sorted(CUDA.glob("*.cu"))


@cache
def objects() -> list[Path]:
    """One object per source, with its host code."""
    return built_objects() or compiled_objects()


def built_objects() -> list[Path]:
    """The objects of the package's own build; none if ninja would recompile any."""
    _build_backend()
    from revdeq_ninja import ninja

    folder = ROOT / "build" / str(sys.implementation.cache_tag)
    names = [f"cuda.{source.name}.o" for source in sources()]
    if not (folder / "build.ninja").exists():
        return []
    command = [ninja(), "-C", str(folder), "-n", *names]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    fresh = done.returncode == 0 and "no work to do" in done.stdout
    return [folder / name for name in names] if fresh else []


def compiled_objects() -> list[Path]:
    """Objects with the same flags, containing only PTX."""
    virtual = f"compute_{known_archs()[-1]}"
    no_gpu = f"-gencode=arch={virtual},code={virtual}"

    def make(source: Path) -> Path:
        name = f"{source.stem}-{_key(source)}.o"
        return _kept(name, lambda to: _nvcc(no_gpu, "-c", source, "-o", to))

    return _for_each_source(make)


def ptx_of_objects(objects: list[Path], arch: str) -> list[str]:
    """The PTX for `arch` in the objects; none if any object has none."""
    triton = importlib.util.find_spec("triton")  # includes cuobjdump
    if triton is None or triton.origin is None:
        return []
    tool = Path(triton.origin).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    texts = []
    for path in objects:
        command = [str(tool), "-arch", f"sm_{arch}", "-ptx", str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        _, found, text = done.stdout.partition("\n.version")
        if done.returncode or not found:
            return []
        texts.append(re.sub(r"^\t*\.loc\t.*\n", "", found + text, flags=re.MULTILINE))
    return texts


def compiled_ptx(arch: str) -> list[str]:
    """The PTX of every source, compiled by nvcc for `arch`."""

    def make(source: Path) -> str:
        name = f"{source.stem}-{arch}-{_key(source)}.ptx"
        ptx = f"-arch=compute_{arch}"
        return _kept(name, lambda to: _nvcc(ptx, "-ptx", source, "-o", to)).read_text()

    return _for_each_source(make)


# ---- the compiler ----------------------------------------------------------------------------


def _for_each_source(make: Callable[[Path], object]) -> list:
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(make, sources()))


def _nvcc(*arguments: str | Path) -> None:
    import setup

    flags = [flag for flag in (*setup.COMMON, *setup.NVCC_FLAGS) if "ptxas" not in flag]
    flags.remove("-lineinfo")  # does not change the code
    torch, _ = setup.find_torch()
    _run(nvcc(), *flags, f"-isystem={torch}/include", *map(str, arguments))


def _link(objects: Sequence[Path], to: Path) -> None:
    """Link a library in which the recorder's functions take precedence over torch and CUDA."""
    import setup

    torch, _ = setup.find_torch()
    linker = "-Wl,-Bsymbolic,--no-as-needed,-z,noexecstack,-z,defs,--wrap=torch_call_dispatcher"
    libraries = (f"-L{torch}/lib", f"-Wl,-rpath,{torch}/lib", "-ltorch", "-ltorch_cpu")
    _run("g++", "-shared", linker, *map(str, objects), *libraries, "-o", str(to))


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NotCompiledError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")


def _build_backend() -> None:
    folder = str(ROOT / "build_backend")
    if folder not in sys.path:
        sys.path.append(folder)


# ---- what is kept ----------------------------------------------------------------------------


def _key(*paths: Path) -> str:
    """A digest of the files and of everything that their compilation reads."""
    read = [*paths, *sorted((ROOT / "csrc").rglob("*.h")), ROOT / "setup.py"]
    digest = hashlib.sha256(_version().encode())
    for path in read:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


@cache
def _version() -> str:
    import torch

    command = [nvcc(), "--version"]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return f"{told} {torch.__version__}"


def _kept(name: str, make: Callable[[Path], None]) -> Path:
    """The file of that name, created on first use; older files of its kind are removed."""
    path, kind = KEPT / name, name.rpartition("-")[0]
    KEPT.mkdir(parents=True, exist_ok=True)
    with (KEPT / f"{kind}{path.suffix}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # one process creates it, others wait
        if not path.exists():
            part = path.with_name(f"part-{name}")
            make(part)
            for former in KEPT.glob(f"{kind}-{'?' * 16}{path.suffix}"):
                former.unlink()
            part.replace(path)
    return path
