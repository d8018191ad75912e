"""The figures in the documents are what is stored, and what is stored agrees with the code."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from bench.core import stored
from bench.core.session import Record
from bench.show import documents, front, pictures, readme
from bench.show import kernel_tables as kernels
from tests import ROOT


def test_the_documents_say_what_is_stored(capsys: pytest.CaptureFixture[str]) -> None:
    status = readme.main(["--check"])
    assert status == 0, capsys.readouterr().err


def test_every_figure_stands_in_a_document_and_no_table_is_typed_by_hand() -> None:
    texts = {name: (ROOT / name).read_text(encoding="utf-8") for name in readme.DOCUMENTS}
    named = [found for text in texts.values() for found in readme.MARKED.findall(text)]
    assert sorted(named) == sorted(readme.FIGURES)
    for name, text in texts.items():
        by_hand = readme.MARKED.sub("", text)
        assert "---:" not in by_hand, f"{name}: a column of numbers outside of the markers"


def test_what_differs_is_shown_and_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in readme.DOCUMENTS:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    document = tmp_path / "README.md"
    text = document.read_text(encoding="utf-8")
    document.write_text(text.replace("27 MiB instead of", "26 MiB instead of"), "utf-8")
    assert readme.main(["--check"], root=tmp_path) == 1
    printed = capsys.readouterr().err
    assert "-<!-- figures:begin solver.headline -->26 MiB" in printed and "make readme" in printed
    assert readme.main([], root=tmp_path) == 0
    assert document.read_text(encoding="utf-8") == text
    assert readme.main(["--check"], root=tmp_path) == 0


def test_a_figure_that_shows_other_numbers_is_noticed_and_drawn_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readme, "DOCUMENTS", ())
    (tmp_path / "docs").mkdir()
    for name, picture, _ in pictures.files():
        text = (ROOT / name).read_text(encoding="utf-8")
        assert pictures.described(text) == picture.shown()
        changed = re.sub(
            r"\d(?=[,\]}].*</desc>)", lambda digit: str(9 - int(digit[0])), text, count=1
        )
        assert changed != text
        (tmp_path / name).write_text(changed, encoding="utf-8")
    assert readme.main(["--check"], root=tmp_path) == 1
    printed = capsys.readouterr().err
    for name, _, _ in pictures.files():
        assert f"{name}: what is stored gives another figure" in printed
    assert readme.main([], root=tmp_path) == 0
    assert readme.main(["--check"], root=tmp_path) == 0


@pytest.mark.parametrize("picture", pictures.PICTURES, ids=lambda picture: picture.name)
def test_a_figure_holds_its_numbers_and_no_address(picture: pictures.Picture) -> None:
    light, dark = (pictures.svg(picture, dark=dark) for dark in (False, True))
    for text in (light, dark):
        assert pictures.described(text) == picture.shown()
        assert set(re.findall(r"https?://[^\"\s<]*", text)) <= {
            "http://www.w3.org/2000/svg",
            "http://www.w3.org/1999/xlink",
        }
    assert "text{fill: #000000}" in light and "text{fill: #e6e6e6}" in dark
    assert "#000000" not in dark


def test_every_line_of_the_front_figure_has_every_depth() -> None:
    depths = [[point["steps"] for point in line] for line in front.points().values()]
    assert len(depths) == len(front.LINES) and len(depths[0]) > 3
    assert all(line == depths[0] for line in depths)


def test_the_front_table_has_the_stored_numbers() -> None:
    rows = [row.strip("| ").split(" | ") for row in front.compared().splitlines()[2:6]]
    records = stored.lines(stored.XEON_AMX, "solve.peers")
    for (_, peak, _, _, _, ratio), provider in zip(rows, front.ROWS, strict=True):
        one = documents.find(records, op="mlp", provider=provider, steps=front.STEPS)
        assert float(peak.removesuffix(" MiB")) == pytest.approx(
            one["peak_bytes"] / 2**20, rel=6e-3
        )
        assert float(ratio.removesuffix("x")) == pytest.approx(one["ratio_to_loop"], abs=6e-3)


KNOWN: dict[str, Callable[[], str]] = {"one": lambda: "1 MiB", "table": lambda: "| a |\n| b |"}


def test_a_sentence_stays_in_its_line_and_a_table_gets_its_own() -> None:
    begin, end = readme.BEGIN.format, readme.END
    text = f"takes {begin('one')}?{end} more\n{begin('table')}{end}\n"
    wanted = f"takes {begin('one')}1 MiB{end} more\n{begin('table')}\n| a |\n| b |\n{end}\n"
    assert readme.filled(text, "a.md", KNOWN) == wanted
    assert readme.filled(wanted, "a.md", KNOWN) == wanted


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("<!-- figures:begin one -->", "a.md: expected `<!-- figures:end -->` after every"),
        ("<!-- figures:end -->", "a.md: expected `<!-- figures:begin NAME -->` before every"),
        ("<!-- figures:begin two --><!-- figures:end -->", "one of one, table, got figures 'two'"),
    ],
)
def test_markers_out_of_order_are_refused(text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        readme.filled(text, "a.md", KNOWN)


# ---- tables ------------------------------------------------------------------------------------


def op_line(**changes: object) -> Record:
    record = {
        "benchmark": "half_step", "op": "update_", "provider": "revdeq cpu", "kind": "revdeq",
        "dtypes": {"state": "float32", "f": "bfloat16"}, "beta": 0.5, "size_mb": 64.0,
        "elements": 2**24, "bytes": 10 * 2**24, "threads": 2, "refused": None,
        "p20_seconds": 4.9e-3, "p50_seconds": 5e-3, "p80_seconds": 5.2e-3, "gb_per_second": 33.6,
        "share_of_bound": 1.25, "ratio_to_best_alternative": 0.5, "device_name": "A CPU",
        "cache_bytes": 2**25, "python": "3.12", "torch": "2.13.0", "triton": "3.6.0",
        "revdeq_kernels": "0.1.0", "commit": "abc", "date": "2026-01-02T03:04:05+00:00",
    }  # fmt: skip
    return record | changes


def test_the_table_of_the_ops() -> None:
    table = documents.of_ops([op_line(), op_line(provider="eager", kind="alternative")])
    assert "A CPU (last cache 32 MiB)" in table
    row = "| `update_` | fp32, f bf16 | 64 MiB, 2 threads | **revdeq cpu** | 5 ms | 33.6 | 125% |"
    assert row in table
    assert "|  |  |  | eager | 5 ms |" in table
    with pytest.raises(ValueError, match="at least one line"):
        documents.of_ops([])


def test_of_lines_measured_twice_the_last_one_counts() -> None:
    lines = [{"op": "mlp", "steps": 2, "n": 1}, {"op": "mlp", "steps": 2, "n": 2}]
    assert documents.find(lines, op="mlp", steps=2)["n"] == 2
    with pytest.raises(ValueError, match="expected a line with"):
        documents.find(lines, op="block")


def test_what_raises_is_marked() -> None:
    cell = documents.star(lambda record: "1.39")
    assert cell({"raises": True}) == "1.39 \\*"
    assert cell({"raises": False}) == "1.39"


# ---- docs/kernels.md ---------------------------------------------------------------------------


def test_an_op_without_an_equation_is_an_error() -> None:
    with pytest.raises(ValueError, match="forget_") as error:
        kernels.ops(rows=kernels.TABLE | {"forget_": kernels.Row("", "x", ())})
    assert str(error.value) == (
        "op forget_: expected an equation, got none; give its Op in revdeq_kernels/ops/ one"
    )


@pytest.mark.parametrize(
    ("names", "problem"),
    [
        ((), "kernel adjoint_kernel: expected an op that names it, got none"),
        (("adjoint_kernel", "seed_kernel"), "kernel seed_kernel: expected it in docs/resources"),
    ],
)
def test_kernels_without_an_op_or_a_record_are_errors(names: tuple[str, ...], problem: str) -> None:
    row = replace(kernels.TABLE["adjoint_"], kernels=names)
    with pytest.raises(ValueError, match=problem):
        kernels.ops(rows=kernels.TABLE | {"adjoint_": row})


def test_bytes_that_the_benchmark_does_not_count_are_an_error() -> None:
    row = replace(kernels.TABLE["adjoint_"], bytes="2 grad + vjp")
    with pytest.raises(ValueError, match=r"adjoint_: expected bytes .* 12 .* got '2 grad .*, 10;"):
        kernels.ops(rows=kernels.TABLE | {"adjoint_": row})


def test_figures_of_a_gpu_stand_on_the_page_only_where_they_were_measured() -> None:
    on_cpu = [one for one in stored.every("ops") if one["device"] == "cpu"]
    assert kernels.shares("cuda", on_cpu) == kernels.NONE["cuda"]
    measured = next(one for one in on_cpu if one["provider"] == "revdeq cpu")
    gpu = {"device": "cuda", "device_name": "A GPU", "threads": None, "provider": "revdeq cuda"}
    table = kernels.shares("cuda", [*on_cpu, measured | gpu])
    assert table.startswith("A GPU (")
    assert "| revdeq cuda |" in table
