"""From beta to the integers of an exact step: C++ computes the same as ``exact_numbers.py``.

One allocates the digits, the other writes them. pybind11 makes the header a module, so that
hypothesis can choose the numbers.
"""

from __future__ import annotations

import importlib.util
import sysconfig
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from revdeq_kernels.exact_numbers import BetaError, Contraction, contraction
from tests.native.compiling import NATIVE, compiled, needs_compiler, run_compiler

pybind11 = pytest.importorskip("pybind11")
HEADERS = Path(sysconfig.get_path("include"))

pytestmark = [
    needs_compiler,
    pytest.mark.skipif(not (HEADERS / "Python.h").exists(), reason="no headers of Python"),
]

bases = st.integers(2, 256)
signs = st.sampled_from([-1, 1])
betas = st.one_of(
    st.floats(0, 2, exclude_min=True, exclude_max=True),
    st.builds(lambda base, sign: 1 + sign / base, bases, signs),
    # 2^29 / |1 - beta| is, or is next to, the middle between two integers: Q rounds it.
    st.builds(
        lambda whole, sign: 1 + sign * 2**29 / (whole + 0.5), st.integers(2**29, 2**37), signs
    ),
)


@pytest.fixture(scope="module")
def cpp(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The functions of csrc/exact_step.h."""
    flags = ("-O0", f"-isystem{pybind11.get_include()}", f"-isystem{HEADERS}")
    library = tmp_path_factory.mktemp("module") / "exact_numbers.so"
    run_compiler(
        "-shared", str(compiled("module", NATIVE / "exact_numbers.cpp", flags)), "-o", str(library)
    )
    spec = importlib.util.spec_from_file_location("exact_numbers", library)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def contraction_of(beta: float) -> Contraction:
    """What Python makes of `beta`; another one is drawn where it refuses."""
    try:
        return contraction(beta)
    except BetaError:
        assume(False)
        raise


@given(beta=betas)
def test_the_contraction_of_beta(cpp: Any, beta: float) -> None:
    numbers = contraction_of(beta)
    assert cpp.exact_q(beta) == numbers.q
    assert cpp.effective_keep(beta) == numbers.one_minus_beta
    assert cpp.digit_base(numbers.q) == numbers.base


@given(beta=betas, numel=st.integers(0, 2**40))
def test_the_digits_of_a_state(cpp: Any, beta: float, numel: int) -> None:
    numbers = contraction_of(beta)
    assert cpp.digits_per_byte(numbers.base) == numbers.digits_per_byte
    assert cpp.block_count(numel, numbers.digits_per_byte) == numbers.blocks(numel)
