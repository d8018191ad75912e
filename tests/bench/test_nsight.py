"""How the table of Nsight Compute is read; it has not been run on hardware."""

from __future__ import annotations

import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from bench import arguments
from bench.core import ceilings
from bench.core.ceilings import Ceilings
from bench.core.session import Bar, Record, Session
from bench.profile import nsight
from bench.show import html

CPU = torch.device("cpu")
LIMITS = Ceilings(copy=4e12, matmul={"bfloat16": 8e14})
# In the form of `ncu --csv --page raw --print-units base`: notes, names, units, launches.
SAMPLE = """\
==PROF== Connected to process 4242 (/usr/bin/python3.12)
==PROF== Profiling "half_step_kernel" - 0: 0%....50%....100% - 1 pass
==PROF== Disconnected from process 4242
"ID","Process ID","Process Name","Host Name","Kernel Name","Context","Stream","Block Size",\
"Grid Size","Device","CC",\
"dram__bytes.sum","dram__bytes.sum.per_second","dram__throughput.avg.pct_of_peak_sustained_elapsed",\
"gpu__time_duration.sum","sm__inst_executed_pipe_tensor.avg.pct_of_peak_sustained_active",\
"sm__warps_active.avg.pct_of_peak_sustained_active"
"","","","","","","","","","","","byte","byte/second","%","nsecond","%","%"
"0","4242","python3.12","127.0.0.1","half_step_kernel","1","7","(256, 1, 1)",\
"(65536, 1, 1)","0","9.0",\
"805,306,368","3,900,000,000,000","81.25","206,489","0","92.50"
"1","4242","python3.12","127.0.0.1","forward_kernel","1","7","(128, 1, 1)",\
"(132, 1, 1)","0","9.0",\
"1,000,000","50,000,000","1.5","20,000","n/a","12.00"
"""


def jobs() -> list[nsight.Job]:
    return [
        nsight.Job("update_", "fp32, f fp32", 800_000_000, 0, lambda: lambda: None),
        nsight.Job("linear_cell_forward", "bf16", 4_000_000, 16_000_000_000, lambda: lambda: None),
    ]


def test_the_table_is_read_launch_by_launch() -> None:
    first, second = nsight.parse(SAMPLE)
    assert first == {
        "kernel": "half_step_kernel",
        "device_seconds": pytest.approx(206.489e-6),
        "dram_bytes": 805306368.0,
        "dram_bytes_per_second": 3.9e12,
        "dram_percent": 81.25,
        "occupancy_percent": 92.5,
        "tensor_percent": 0.0,
    }
    assert (second["kernel"], second["tensor_percent"]) == ("forward_kernel", None)


@pytest.mark.parametrize("text", ["", "==ERROR== no such metric", SAMPLE + SAMPLE])
def test_what_is_no_table_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected one table with a column ID"):
        nsight.parse(text)


def test_the_floor_is_the_slower_of_bytes_and_operations() -> None:
    first, second = nsight.lines_of(nsight.parse(SAMPLE), jobs(), LIMITS)
    assert first["floor_seconds"] == pytest.approx(200e-6)
    assert second["floor_seconds"] == pytest.approx(20e-6)
    with pytest.raises(ValueError, match=r"each of 1 calls, got half_step_kernel, forward_kernel"):
        nsight.lines_of(nsight.parse(SAMPLE), jobs()[:1], LIMITS)


def test_the_jobs_are_the_headlines_of_the_ops_and_can_be_called() -> None:
    found = list(nsight.jobs(CPU, size_mb=0.01))
    assert len(found) >= 8
    assert {"update_", "adjoint_", "update_exact_ beta 0.5"} <= {job.op for job in found}
    for job in found:
        job.make()()
        assert job.bytes > 0


def run_with(monkeypatch: pytest.MonkeyPatch, code: int, out: str, said: str) -> list[Record]:
    """A run on a machine that has a GPU and ncu, which answers with this."""
    given = ("--quick", "--device", "cpu", "--threads", "1")
    asked = arguments.session(arguments.parse(given), given)
    run = Session(asked.chosen, torch.device("cuda"), "quick", asked.facts, asked.ceilings)
    monkeypatch.setattr(nsight.shutil, "which", lambda name: "/usr/bin/ncu")
    monkeypatch.setattr(nsight, "jobs", lambda device: iter(jobs()))
    monkeypatch.setattr(ceilings, "of", lambda session: LIMITS)
    commands: list[list[str]] = []

    def answer(command: list[str], **options: object) -> SimpleNamespace:
        commands.append(command)
        return SimpleNamespace(returncode=code, stdout=out, stderr=said)

    monkeypatch.setattr(subprocess, "run", answer)
    lines = [line | asked.facts for line in nsight.run(run, Bar())]
    assert commands[0][0] == "/usr/bin/ncu" and commands[0][-2:] == ["-m", "bench.profile.nsight"]
    return lines


def test_a_run_gives_a_line_for_each_kernel_and_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = run_with(monkeypatch, 0, SAMPLE, "")
    assert [line["kernel"] for line in lines] == ["half_step_kernel", "forward_kernel"]
    (table,) = nsight.tables(lines)
    assert list(table.rows[0].cells) == [
        "update_", "fp32, f fp32", "half_step_kernel", "206 us", "200 us", "3900", "81%",
        "1.01 of counted", "92%", "0%",
    ]  # fmt: skip
    page = html.page(lines)
    assert ">half_step_kernel</td>" in page and "by Nsight Compute" in page


def test_who_may_not_read_the_counters_is_skipped_and_who_fails_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (line,) = run_with(monkeypatch, 1, "==ERROR== ERR_NVGPUCTRPERM - no permission", "")
    assert "may not read" in line["skipped"] and line["refused"] is None
    (line,) = run_with(monkeypatch, 9, "", "cannot import bench")
    assert "it ended with 9: cannot import bench" in line["refused"]


def test_the_clocks_of_the_card_are_left_alone() -> None:
    """Unasked, ncu locks them to the base clock while a kernel runs."""
    command = nsight.command("ncu")
    assert command[command.index("--clock-control") + 1] == "none"


def test_every_metric_is_asked_for(tmp_path: Path) -> None:
    asked = nsight.command("ncu")[nsight.command("ncu").index("--metrics") + 1].split(",")
    assert set(asked) == set(nsight.METRICS.values())
    assert all(metric in SAMPLE for metric in asked)
