"""Build `revdeq_kernels/librevdeq_cpu.so` and, where nvcc is found, `librevdeq_cuda.so`.

Neither calls Python, so that one wheel serves every Python for which torch has one.

Environment: REVDEQ_BUILD_CPP and REVDEQ_BUILD_CUDA (auto, 0 or 1), REVDEQ_SANITIZE (as in
"address,undefined"), and the usual TORCH_CUDA_ARCH_LIST, CUDA_HOME, MAX_JOBS and CXX.

torch's own CUDAExtension is not used: it refuses a torch without CUDA, though the CUDA library
needs no more of torch than the headers of the stable ABI.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import setuptools

if int(setuptools.__version__.split(".")[0]) < 77:
    version = setuptools.__version__
    sys.exit(f"expected setuptools 77 or newer, got {version}: `pip install -U setuptools`")

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.command.editable_wheel import editable_wheel

ROOT = Path(__file__).parent.resolve()
sys.path.insert(0, str(ROOT / "build_backend"))
from revdeq_choice import builds_cpp  # noqa: E402
from revdeq_compiler import check_compiler, compiler  # noqa: E402
from revdeq_ninja import Library, build  # noqa: E402
from revdeq_nvcc import Nvcc, find_nvcc  # noqa: E402
from revdeq_torch import find_torch  # noqa: E402

COMMON = ["-std=c++20", "-O3", "-DTORCH_TARGET_VERSION=0x020b000000000000", f"-I{ROOT / 'csrc'}"]
CXX_FLAGS = ["-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra"]
CXX_FLAGS += ["-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"]
NVCC_FLAGS = ["-Xcompiler=-fPIC,-fvisibility=hidden,-ffp-contract=off", "-lineinfo"]
NVCC_FLAGS += ["-DUSE_CUDA=1", "-Xptxas=-v,-warn-spills"]
# torch is opened with RTLD_LOCAL: only a DT_NEEDED entry lets the library find torch's symbols. It
# names libtorch.so, which every build of torch has; in a torch with CUDA that one needs
# libtorch_cuda.so in turn, where three of the symbols are. So any torch will do for a build.
NVCC_LINK_FLAGS = ["-shared", "-cudart=static", "-Xlinker=--no-as-needed,-z,noexecstack", "-ltorch"]
SANITIZE = os.environ.get("REVDEQ_SANITIZE", "")
SANITIZE_FLAGS = [f"-fsanitize={SANITIZE}", "-fno-sanitize-recover=all", "-g", "-O1"]


def sources(pattern: str) -> list[str]:
    """The files of csrc/, named from the project's folder as setuptools wants them."""
    return sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "csrc").glob(pattern))


class BuildExt(build_ext):
    """Build in build/<python>/, which outlives pip's runs, and copy the libraries from there."""

    nvcc: Nvcc | None

    def get_ext_filename(self, fullname: str) -> str:
        """Path of a library: it is no Python module, and has no Python's suffix."""
        return fullname.replace(".", "/") + ".so"

    def run(self) -> None:
        """Choose what to build, and remove what an earlier build left where setuptools keeps it."""
        self.nvcc = find_nvcc()
        if self.nvcc is None:
            self.extensions = [ext for ext in self.extensions if not ext.name.endswith("_cuda")]
        stale = list(Path(self.build_lib).glob("revdeq_kernels/*.so"))
        if self.inplace:
            stale += (ROOT / "revdeq_kernels").glob("*.so")
        for library in stale:
            library.unlink()
        super().run()

    def build_extensions(self) -> None:
        """Compile, then copy the libraries to where setuptools wants them."""
        check_compiler()
        torch, torch_version = find_torch()
        cuda = f"{self.nvcc.path} for {self.nvcc.archs}" if self.nvcc else "without CUDA"
        print(f"revdeq-kernels: torch {torch_version} in {torch}, {cuda}", flush=True)
        libraries = [self.cpu_library(torch, torch_version)]
        if self.nvcc:
            libraries.append(self.cuda_library(torch, self.nvcc))
        name = "-".join(filter(None, [str(sys.implementation.cache_tag), SANITIZE]))
        build(ROOT / "build" / name, libraries)
        for ext in self.extensions:
            target = Path(self.get_ext_fullpath(ext.name))
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / "build" / name / target.name, target)

    def cpu_library(self, torch: Path, torch_version: str) -> Library:
        """Schemas, CPU kernels, and the facts of the build, which schema.cpp tells."""
        facts = {
            "REVDEQ_VERSION": self.distribution.get_version(),
            "REVDEQ_BUILT_WITH_TORCH": torch_version,
            "REVDEQ_CUDA_ARCHS": ";".join(self.nvcc.archs) if self.nvcc else "",
            "REVDEQ_NVCC_VERSION": self.nvcc.version if self.nvcc else "",
            "REVDEQ_SANITIZE": SANITIZE,
        }
        sanitize = SANITIZE_FLAGS if SANITIZE else []
        flags = [*COMMON, *CXX_FLAGS, *sanitize, f"-isystem{torch}/include"]
        # Facts that change recompile that file alone.
        with_facts = [*flags, *(f'-D{name}="{value}"' for name, value in facts.items())]
        files = self.ext_map["revdeq_kernels.librevdeq_cpu"].sources
        compiled = {ROOT / file: with_facts if "schema" in file else flags for file in files}
        link = ["-shared", *sanitize, f"-L{torch}/lib", "-ltorch", "-ltorch_cpu"]
        return Library("librevdeq_cpu.so", "cxx", compiler(), compiled, link)

    def cuda_library(self, torch: Path, nvcc: Nvcc) -> Library:
        """The CUDA kernels."""
        flags = [*COMMON, *NVCC_FLAGS, *nvcc.gencode(), f"-isystem={torch}/include"]
        files = self.ext_map["revdeq_kernels.librevdeq_cuda"].sources
        link = [*nvcc.gencode(), *NVCC_LINK_FLAGS, f"-L{torch}/lib"]
        compiled = {ROOT / file: flags for file in files}
        return Library("librevdeq_cuda.so", "nvcc", nvcc.path, compiled, link)


class EditableWheel(editable_wheel):
    """An editable install reads the tree: what an earlier build left there must match this one."""

    def run(self) -> None:
        """Without extensions no `build_ext` runs that would remove them."""
        if not self.distribution.ext_modules:
            for library in (ROOT / "revdeq_kernels").glob("*.so"):
                library.unlink()
        super().run()


class BdistWheel(bdist_wheel):
    """A wheel with libraries is for one system, and for every Python."""

    def get_tag(self) -> tuple[str, str, str]:
        """As in py3-none-linux_x86_64."""
        return "py3", "none", super().get_tag()[2]


if __name__ == "__main__":
    extensions = [
        Extension("revdeq_kernels.librevdeq_cpu", ["csrc/schema.cpp", *sources("cpu/*.cpp")]),
        Extension("revdeq_kernels.librevdeq_cuda", sources("cuda/*.c*")),
    ]
    # Without extensions the wheel is for any Python on any system.
    commands = {
        "build_ext": BuildExt, "bdist_wheel": BdistWheel, "editable_wheel": EditableWheel,
    }  # fmt: skip
    setup(cmdclass=commands, ext_modules=extensions if builds_cpp() else [])
