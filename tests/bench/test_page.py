"""The page of the benchmarks: what stands in it, and that it stands alone."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

from bench import __main__ as command
from bench.cell import methods
from bench.core import ceilings, labels, machine, stored
from bench.ops import columns
from bench.profile import nsight
from bench.show import explained, headline, html, inline_svg, solver_figures
from bench.solver import plan
from tests import ROOT

RESULTS = ROOT / "bench" / "results"
VOID = {"meta", "br"}


class Seen(HTMLParser):
    """The elements of a page; AssertionError where they do not close as they open."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.text: list[str] = []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        self.note(attrs)

    def handle_startendtag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        self.note(attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def note(self, attrs: Sequence[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            elif name in ("href", "xlink:href", "src"):
                self.links.append(value or "")


def every_line() -> list[dict[str, object]]:
    return stored.read_all([path for path in sorted(RESULTS.glob("cpu/*")) if path.is_dir()])


@pytest.fixture(scope="module")
def whole() -> str:
    return html.page(every_line())


def test_the_page_stands_alone(whole: str) -> None:
    """No address but the names of SVG's formats; every link leads to an id, and no id is twice."""
    seen = Seen(whole)
    assert set(re.findall(r"https?://[^\"'\s<]*", whole)) == {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }
    assert "<script" not in whole
    assert len(seen.ids) == len(set(seen.ids))
    assert {link.removeprefix("#") for link in seen.links} <= set(seen.ids)
    references = re.findall(r"url\(#([^)]*)\)", whole)
    assert references and set(references) <= set(seen.ids)


def test_the_page_holds_figures_tables_and_the_machine(whole: str) -> None:
    # Of the ops on two machines; of the cell; four of the solver.
    assert whole.count("<svg ") == 2 + 1 + 4
    for record in every_line():
        for name in html.FACTS:
            assert record[name] is None or str(record[name]) in whole
    first = next(r for r in stored.read(next(RESULTS.glob("cpu/Intel*/ops.jsonl"))))
    for column in (columns.TIME, columns.SPREAD, columns.RATE, columns.SHARE):
        assert f">{column.cell(first)}</td>" in whole
    assert "Busy machine:" in whole
    assert "prefers-color-scheme: dark" in whole


def test_the_figures_have_colours_for_a_dark_ground(whole: str) -> None:
    figures = "".join(re.findall(r"<svg .*?</svg>", whole, re.DOTALL))
    assert not any(colour in figures for colour in inline_svg.DARK)
    used = set(re.findall(r"var\((--c-\w+)\)", whole))
    light, dark = inline_svg.styles()
    assert used and all(f"{name}:" in light and f"{name}:" in dark for name in used)


def test_a_quiet_machine_is_not_called_busy() -> None:
    (line,) = stored.read(next(RESULTS.glob("cpu/Intel*/ops.jsonl")))[:1]
    assert line["load_average"] <= stored.BUSY
    assert "Busy machine:" not in html.page([line])
    assert "Busy machine:" in html.page([line | {"load_average": stored.BUSY + 0.1}])


def test_every_fact_is_named() -> None:
    facts = machine.facts(torch.device("cpu"))
    assert facts.keys() == html.FACTS.keys() | {"load_average", "date"}


def test_refusals_and_commands_stand_in_full_and_as_text() -> None:
    (op,) = stored.read(next(RESULTS.glob("cpu/Intel*/ops.jsonl")))[:1]
    (solve,) = stored.read(next(RESULTS.glob("cpu/AMD*/solve.cost.jsonl")))[:1]
    reason = "ValueError: expected <b>1</b> & got 2"
    lines = [
        op | {"refused": reason, "command": "python -m bench --only 'a b'", "commit": "abc"},
        solve | {"refused": reason, "commit": "def-modified"},
    ]
    page = html.page(lines)
    text = "".join(Seen(page).text)
    assert text.count(reason) == 2
    assert "git checkout abc\nmake build\n.venv/bin/python -m bench --only 'a b'" in text
    assert "git checkout def   # files differed from this commit" in text
    assert ".venv/bin/python -m bench   # these lines do not hold the options" in text
    assert "git checkout" not in html.commands([op | {"commit": "unknown"}])


def test_who_was_skipped_has_a_reason_and_a_row() -> None:
    (solve,) = stored.read(next(RESULTS.glob("cpu/AMD*/solve.cost.jsonl")))[:1]
    absent = dict.fromkeys(("p50_seconds", "p20_seconds", "p80_seconds", "peak_bytes"))
    line = {"provider": "torchdeq IFT", "part": "peers", "skipped": "expected torchdeq <1>"}
    page = html.page([solve | {"part": "peers"}, solve | absent | line])
    assert "skipped: torchdeq IFT: expected torchdeq &lt;1&gt;" in page
    assert re.search(r"<td>torchdeq IFT</td><td[^>]*>skipped</td>", page)
    assert "z &lt;- f(z), without beta" in page


@pytest.mark.parametrize(
    ("reason", "word"),
    [("out of memory: tried 3 GiB", "out of memory"), ("ValueError: [x]", "refused")],
)
@pytest.mark.parametrize("part", ["cost", "peers", "overhead", "largest"])
def test_who_has_no_figures_has_a_row_that_says_so(part: str, reason: str, word: str) -> None:
    (solve,) = stored.read(next(RESULTS.glob("cpu/AMD*/solve.cost.jsonl")))[:1]
    line = solve | {"part": part, "refused": reason, "axis": "N"}
    page = html.page([line])
    assert re.search(rf"<td>lerp loop</td><td[^>]*>{word}</td>", page)
    assert reason in page


def test_nothing_is_no_page() -> None:
    with pytest.raises(ValueError, match="expected at least one line"):
        html.page([])


def test_the_pages_say_what_every_provider_is() -> None:
    texts = explained.meanings("provider")
    known = {method.name for part in plan.PARTS.values() for method in part.methods}
    problem = methods.make(32, 8, 2, torch.float32, torch.device("cpu"))
    known |= {way.name for way in methods.ways(problem)} | {nsight.PROVIDER}
    for name in ("triton", "gluon"):
        known |= {methods.ours(name).name, methods.with_floats(name).name}
    known |= {"copy_", "matmul float32", "matmul bfloat16", ceilings.FMA}
    known |= {str(record["provider"]) for record in every_line()}
    known |= {"loop", "_foreach_lerp_", "revdeq cuda", "revdeq triton", "revdeq reference"}
    assert known - texts.keys() == set()
    assert texts["compile"] == "torch.compile of the same function"
    assert "<code>" in texts["eager"]
    assert not any("href" in text for text in texts.values())


def test_a_section_ends_where_the_next_begins() -> None:
    section = explained.section("How to read the figures")
    assert "Cold caches" in section
    assert "lerp loop" not in section
    assert "<h3" not in section
    with pytest.raises(ValueError, match="expected one heading"):
        explained.section("No such heading")


def test_the_command_line_is_stored_without_its_places(tmp_path: Path) -> None:
    given = ["--out", "/a/folder", "--only", "a b", "--out=/another", "--threads", "1"]
    expected = "python -m bench --only 'a b' --threads 1"
    assert machine.command_line("bench", given, places=("--out",)) == expected
    tiny = ("--quick", "--device", "cpu", "--sizes-mb", "0.01", "--samples", "1", "--threads", "1")
    chosen = ("--only", "half_step.update_", "--providers", "eager", "--out", str(tmp_path))
    assert command.main([*tiny, *chosen]) == 0
    lines = (tmp_path / "ops.jsonl").read_text(encoding="utf-8").splitlines()
    stored_command = json.loads(lines[0])["command"]
    assert stored_command.startswith("python -m bench --quick --device cpu")
    assert str(tmp_path) not in stored_command


def test_the_command_writes_the_page(tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    results = next(RESULTS.glob("cpu/AMD*/solve.cost.jsonl"))
    assert html.main([str(results), "--out", str(out)]) == 0
    assert Seen(out.read_text(encoding="utf-8")).ids[0] == "headline"


# ---- the headline ------------------------------------------------------------------------------


def test_the_headline_holds_our_times_and_memory_against_the_baselines() -> None:
    """From two ops of known times, and the deepest of the stored training steps."""
    (op,) = stored.read(next(RESULTS.glob("cpu/Intel*/ops.jsonl")))[:1]
    cases = [
        op | {"op": name, "provider": provider, "kind": kind, "p50_seconds": seconds}
        for name, ours in (("a", 1.0), ("b", 3.0))
        for provider, kind, seconds in (
            ("copy_", "bound", 0.1), ("eager", "alternative", 5.0), ("lerp_", "alternative", 4.0),
            ("compile", "alternative", 2.0), ("revdeq cpu", "revdeq", ours),
        )
    ]  # fmt: skip
    found = dict(headline.sentences(cases))
    assert found == {
        "The ops": "0.50x the time of eager PyTorch at its fastest and 1.00x that of torch.compile "
        "(medians of 2 cases)"
    }
    steps = stored.read(next(RESULTS.glob("cpu/AMD*/solve.cost.jsonl")))
    text = dict(headline.sentences(steps))["A training step"]
    deepest = max(record["steps"] for record in steps)
    assert f"N = {deepest}; relative gradient error" in text
    refused = [record | {"refused": "ValueError"} for record in cases + steps]
    assert headline.sentences(refused) == []


def test_the_results_come_first_and_the_machine_folded(whole: str) -> None:
    assert whole.index('id="headline"') < whole.index('id="ops"') < whole.index('id="machine"')
    machine_part = whole[whole.index('id="machine"') :]
    assert machine_part.index("<details>") < machine_part.index('class="facts"')
    assert "bold rows are this project's" in whole


@pytest.mark.parametrize(
    ("count", "text"),
    [(512, "512 B"), (2048, "2 KiB"), (27 * 2**20, "27 MiB"), (1.5 * 2**30, "1.5 GiB")],
)
def test_sizes_are_told_in_the_unit_that_suits_them(count: float, text: str) -> None:
    assert labels.size_label(count) == text


def test_one_depth_is_drawn_as_bars_and_memory_in_mebibytes(tmp_path: Path) -> None:
    lines = stored.read(next(RESULTS.glob("cpu/AMD*/solve.cost.jsonl")))
    one = [r for r in lines if r["op"] == "mlp" and r["beta"] == 0.5 and r["steps"] == 8]
    figure = inline_svg.inline(solver_figures.draw_cost, one, "cost", "cost")
    assert "mlp, beta 0.5, N = 8: time, lerp loop = 1" in figure
    own = next(r for r in one if r["provider"] == "reversible exact")
    assert labels.size_label(own["peak_bytes"]) in figure and "N (steps)" not in figure
    deep = [r for r in lines if r["op"] == "mlp" and r["beta"] == 0.5]
    figure = inline_svg.inline(solver_figures.draw_cost, deep, "cost", "cost")
    assert "N (steps)" in figure and re.search(r">\d+ MiB<", figure)
