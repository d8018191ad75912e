"""docs/kernels.md is what its data gives, and its data agree with each other."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import cuda_resources
import kernel_table
import pytest


def make_page(**changes: Any) -> str:
    stored: dict[str, Any] = {
        "resources": cuda_resources.read(),
        "records": kernel_table.stored_records(),
    }
    return kernel_table.page(**(stored | changes))


def test_the_page_is_what_the_committed_data_gives(capsys: pytest.CaptureFixture[str]) -> None:
    status = kernel_table.main(["--check"])
    assert status == 0, capsys.readouterr().err


def test_a_page_that_is_not_shows_the_difference(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel_table, "PAGE", tmp_path / "kernels.md")
    kernel_table.PAGE.write_text("# Old\n", encoding="utf-8")
    assert kernel_table.main(["--check"]) == 1
    printed = capsys.readouterr().err
    assert "-# Old\n" in printed
    assert "kernel_table.py --write" in printed
    kernel_table.main(["--write"])
    assert kernel_table.main(["--check"]) == 0


def test_an_op_without_a_row_is_an_error() -> None:
    ops = [*kernel_table.TABLE, "forget_", "update_.list"]
    with pytest.raises(ValueError, match="forget_") as error:
        make_page(ops=ops)
    assert str(error.value) == (
        "op forget_: expected a row, got none; add it to TABLE in .ci/kernel_table.py"
    )


@pytest.mark.parametrize(
    ("kernels", "problem"),
    [
        ((), "kernel adjoint_kernel: expected an op that names it, got none"),
        (("adjoint_kernel", "seed_kernel"), "kernel seed_kernel: expected it in docs/resources"),
    ],
)
def test_kernels_without_an_op_or_a_record_are_errors(
    kernels: tuple[str, ...], problem: str
) -> None:
    row = replace(kernel_table.TABLE["adjoint_"], kernels=kernels)
    with pytest.raises(ValueError, match=problem):
        make_page(rows=kernel_table.TABLE | {"adjoint_": row})


def test_bytes_that_the_benchmark_does_not_count_are_an_error() -> None:
    row = replace(kernel_table.TABLE["adjoint_"], bytes="2 grad + vjp")
    with pytest.raises(ValueError, match=r"adjoint_: expected bytes .* 12 .* got '2 grad .*, 10;"):
        make_page(rows=kernel_table.TABLE | {"adjoint_": row})


def test_figures_of_a_gpu_stand_on_the_page_only_where_they_were_measured() -> None:
    on_cpu = [one for one in kernel_table.stored_records() if one["device"] == "cpu"]
    assert kernel_table.NO_GPU in make_page(records=on_cpu)
    measured = next(one for one in on_cpu if one["provider"] == "revdeq cpu")
    gpu = {"device": "cuda", "device_name": "A GPU", "threads": None, "provider": "revdeq cuda"}
    page = make_page(records=[*on_cpu, measured | gpu])
    assert kernel_table.NO_GPU not in page
    assert "| revdeq cuda |" in page.split("A GPU (")[1]
    assert "| revdeq cuda |" not in make_page(records=on_cpu)
