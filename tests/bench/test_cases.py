"""The benchmarks' cases: bytes, gate, labels, and numbers that stay ordinary."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from bench.core import gate, harness, labels
from bench.core.case import Call, Case, Plan, Provider, Tensors
from bench.ops import lists, residual
from bench.ops import run as ops
from revdeq_kernels.core.op import OPS

TINY = Plan(
    device=torch.device("cpu"),
    sizes_mb=(0.01,),
    threads=(1,),
    samples=2,
    sample_seconds=0.001,
)
CASES = [case for _, case in ops.planned_cases(TINY)]


def case_id(case: Case) -> str:
    return f"{case.name}-{'-'.join(case.dtype_names.values())}-{case.variant or case.beta}"


@pytest.mark.parametrize("case", [c for c in CASES if c.bytes is not None], ids=case_id)
def test_bytes_are_the_sizes_of_the_tensors_moved(case: Case) -> None:
    tensors = case.make(case.elements)
    # Read once or written once, but state and grad both; the bystanders take no part in the op.
    moved = {name: tensor.nbytes for name, tensor in tensors.items()}
    copied = moved.pop("source") + moved.pop("destination")
    for bystander in ("float64_state", "flag"):
        moved.pop(bystander, None)
    for name in ("state", "grad"):
        moved[f"{name} again"] = moved.get(name, 0)
    if case.benchmark == "conversion":
        moved["result"] = moved["x"]
    assert case.bytes is not None
    assert case.bytes == sum(moved.values())
    assert case.bytes - 8 < copied <= case.bytes


@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_every_eager_provider_and_backend_passes_the_gate(case: Case) -> None:
    for contender in case.providers:
        if not contender.name.startswith("compile"):
            assert gate.refusal(case, contender) is None, contender.name


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # those of torch.compile
def test_every_compiled_provider_passes_the_gate() -> None:
    for case in CASES:
        torch.compiler.reset()
        for contender in case.providers:
            if contender.name.startswith("compile"):
                assert gate.refusal(case, contender) is None, case_id(case)


@pytest.mark.parametrize(
    ("op", "f", "beta", "expected"),
    [
        ("invert_z_adjoint_y_", "bfloat16", 0.5, 12 + 12),
        ("invert_z_adjoint_y_", "float32", 0.5, 12 + 16),
        ("invert_y_adjoint_z_", "bfloat16", 0.5, 12 + 12),
        ("invert_y_adjoint_z0_", "bfloat16", 0.5, 10 + 14),
        ("invert_z_adjoint_y_exact_", "bfloat16", 0.5, 12 + 1 / 8 + 12),
        ("invert_z_adjoint_y_exact_", "bfloat16", 0.7312, 12 + 1 / 4 + 12),
        ("invert_z_adjoint_y_exact_", "float32", 0.5, 12 + 1 / 8 + 16),
        ("invert_y_adjoint_z_exact_", "bfloat16", 0.5, 12 + 1 / 8 + 12),
        ("invert_y_adjoint_z0_exact_", "bfloat16", 0.5, 10 + 1 / 8 + 14),
        ("invert_z_adjoint_y_exact_.list", "bfloat16", 0.5, 12 + 1 / 8 + 12),
        ("update_.list", "float32", 0.5, 12),
        ("update_.channels", "float32", None, 12),
        ("residual", "float32", None, 8),
        ("residual", "bfloat16", None, 4),
    ],
)
def test_bytes_per_element(op: str, f: str, beta: float | None, expected: float) -> None:
    plan = Plan(TINY.device, sizes_mb=(64.0,), threads=(1,))
    found = [
        case.bytes / case.elements
        for _, case in ops.planned_cases(plan)
        if case.bytes is not None
        and (case.op, case.dtype_names.get("f"), case.beta) == (op, f, beta)
    ]
    assert found
    assert found == pytest.approx([expected] * len(found), rel=1e-4)


@pytest.fixture
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def ordinary(tensor: torch.Tensor) -> bool:
    smallest = torch.finfo(tensor.dtype).tiny
    return bool((tensor.isfinite() & ((tensor == 0) | (tensor.abs() >= smallest))).all())


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_settled_tensors_stay_ordinary_through_many_calls(case: Case) -> None:
    for contender in case.providers:
        if contender.kind == "bound" or contender.name.startswith("compile"):
            continue
        tensors = case.make(case.elements)
        case.settle(tensors)
        poisoned = [name for name, tensor in tensors.items() if tensor.isnan().all()]
        call = contender.bind(tensors)
        with contender.scope():
            for _ in range(30):  # of 20 calls: a number that halves is subnormal after 126, for 23
                for _ in range(20):
                    call()
                for name, tensor in tensors.items():
                    untouched = name in poisoned and tensor.isnan().all()
                    if tensor.is_floating_point() and not untouched:
                        assert ordinary(tensor), (contender.name, name)


def test_every_op_of_the_project_has_a_benchmark() -> None:
    on_one_leaf = {label for label in OPS if "." not in label}
    overloads = {"update_.channels", "update_.list"}
    ops = {case.op for case in CASES if case.benchmark != "per_call"}
    assert ops == on_one_leaf | overloads | {f"{lists.PASS}.list"}
    assert ops <= set(OPS)
    assert {case.op for case in CASES if case.benchmark == "per_call"} == on_one_leaf | overloads


def test_no_two_cases_have_the_same_labels() -> None:
    records = [
        next(iter(harness.run_case(TINY, 1.0, unrun(case), {}, on_sample=lambda: None)))
        for case in CASES
    ]
    shown = [(labels.op_label(r), labels.types_label(r)) for r in records if r["bytes"] is not None]
    assert len(set(shown)) == len(shown)
    assert len(labels.groups(records)) == len(records)


def unrun(case: Case) -> Case:
    def refuse(tensors: Tensors) -> Call:
        raise RuntimeError("not needed")

    return replace(case, providers=(Provider("mine", "revdeq", refuse, refuse),))


def test_leaves_are_slices_of_the_whole() -> None:
    tensors = lists.make_pass(2 * 8 * 512 + 3, device=TINY.device)
    leaves = lists.leaves_of(tensors)
    assert (
        [leaf["state"].numel() for leaf in leaves] == lists.leaf_sizes(8195) == [1025] * 7 + [1020]
    )
    for name in ("state", "digits", "seed"):
        assert sum(leaf[name].numel() for leaf in leaves) == tensors[name].numel()
        assert leaves[0][name].data_ptr() == tensors[name].data_ptr()


def test_a_sum_in_the_worst_order_is_within_the_tolerance_of_a_residual() -> None:
    torch.manual_seed(0)  # one in ten draws errs by less than an epsilon
    z, f = residual.make(gate.GATE_ELEMENTS, device=TINY.device, dtype=torch.float32).values()

    def norm(x: torch.Tensor) -> torch.Tensor:
        total = torch.zeros(())
        for square in x * x:
            total += square
        return total.sqrt()

    got = {"result": torch.stack([norm(z - f), norm(f)])}
    wanted = {"result": residual.bind_definition(torch.float32)({"z": z, "f": f})()}
    assert gate.difference(got, wanted, residual.tolerance(z.numel())) is None
    assert gate.difference(got, wanted, 1.0)
