"""examples/trainers: as a reader runs them, and what their "What to watch" says."""

from __future__ import annotations

import ast
import importlib
import os
import pickle
import re
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

from tests import ROOT
from torch_revdeq import CaptureError, LinearCell, ReconstructionError, RevDEQ
from torch_revdeq.testing import assert_exact_gradients

TRAINERS = ROOT / "examples" / "trainers"

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # theirs, of themselves


def needed(*names: str) -> None:
    for name in names:
        pytest.importorskip(name, reason="an example of its use")


def example(name: str) -> ModuleType:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module(f"trainers.{name}")


def printed(name: str, *arguments: str, processes: int = 1) -> str:
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    launcher = launcher if processes > 1 else []
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(
        [sys.executable, *launcher, str(TRAINERS / f"{name}.py"), *arguments],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        env=environment,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(autouse=True)
def _own_random_numbers() -> Iterator[None]:
    """These packages seed all generators, and leave deterministic algorithms as they were."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


# ---- Hugging Face's Trainer --------------------------------------------------------------------


@pytest.fixture
def hf() -> ModuleType:
    needed("transformers", "accelerate")
    return example("hf_trainer")


def test_hf_trainer() -> None:
    needed("transformers", "accelerate")
    out = printed("hf_trainer")
    lines = out.splitlines()[-2:]
    assert [line.split(" use_cache=")[0] for line in lines] == ["Sparse is better than dense."] * 2
    assert all(line.endswith("converged") for line in lines)
    logs = [ast.literal_eval(line) for line in out.splitlines() if line.startswith("{'loss'")]
    assert len(logs) == 8 and float(logs[-1]["loss"]) < 0.3 < float(logs[0]["loss"])
    assert {log["solver_reconstruction_error"] for log in logs} == {"0"}


def test_hf_trainer_resumes_with_the_same_bits(hf: ModuleType, tmp_path: Path) -> None:
    """With dropout, whose generator the Trainer stores."""
    whole = hf.trainer(str(tmp_path / "whole"), 6, save_steps=3)
    whole.train()
    hf.trainer(str(tmp_path / "cut"), 3, save_steps=3).train()
    cut = hf.trainer(str(tmp_path / "cut"), 6, save_steps=3)
    cut.train(resume_from_checkpoint=True)
    assert same(weights(whole.model), weights(cut.model))
    loaded = type(cut.model).from_pretrained(tmp_path / "cut" / "checkpoint-6")
    assert same(weights(whole.model), weights(loaded))


def test_activation_checkpointing_evaluates_f_once_more(hf: ModuleType, tmp_path: Path) -> None:
    runs: list[dict[str, Tensor]] = []
    calls: list[list[int]] = []
    for flag in (False, True):
        run = hf.trainer(str(tmp_path), 3, save_strategy="no", activation_checkpointing=flag)
        calls.append([])
        attention = run.model.equilibrium.f.layer.self_attn
        attention.register_forward_hook(lambda *_, kept=calls[-1]: kept.append(1))
        run.train()
        runs.append(weights(run.model))
    assert same(*runs)
    # The solver takes what its own evaluations of the backward pass append off again.
    assert len(calls[1]) == 2 * len(calls[0])


def trained(hf: ModuleType, folder: Path) -> Any:
    """Far enough that tokens differ."""
    run = hf.trainer(str(folder), 20, save_strategy="no", logging_strategy="no")
    run.train()
    model = run.model.eval()
    model.equilibrium.max_steps, model.equilibrium.tol = 100, 1e-6
    return model


def test_generation_reads_the_cache_and_writes_it_once(hf: ModuleType, tmp_path: Path) -> None:
    model = trained(hf, tmp_path)
    prompts = ["Complex is", "Flat is bet"]
    tokens = torch.tensor([[*b"\0" + prompts[0].encode()], [*prompts[1].encode()]])
    given = {"attention_mask": (tokens > 0).long(), "max_new_tokens": 12, "do_sample": False}
    cached = model.generate(tokens, **given, return_dict_in_generate=True)
    assert torch.equal(cached.sequences, model.generate(tokens, **given, use_cache=False))
    assert cached.cache.get_seq_length() == cached.sequences.shape[1] - 1
    beams = [model.generate(tokens, **given, num_beams=3, use_cache=use) for use in (True, False)]
    assert torch.equal(*beams)

    mask = given["attention_mask"]
    with torch.no_grad():
        logits = model(tokens, attention_mask=mask).logits
        first = model(tokens[:, :6], attention_mask=mask[:, :6], use_cache=True)
        rest = model(tokens[:, 6:], attention_mask=mask, cache=first.cache)
    assert first.cache.get_seq_length() == tokens.shape[1]
    torch.testing.assert_close(rest.logits, logits[:, 6:], atol=1e-3, rtol=0)  # tol, thrice

    with pytest.raises(TypeError, match="cache: expected a DynamicCache, got StaticCache"):
        model.generate(tokens, **given, cache_implementation="static")


def test_a_looped_llama_has_exact_gradients(hf: ModuleType) -> None:
    model = hf.LoopedLlamaForCausalLM(hf.config())
    x = torch.randn(2, 5, 64)
    rotary = model.rotary(x, torch.arange(5)[None])
    stats = assert_exact_gradients(
        model.equilibrium.f, torch.zeros_like(x), x.requires_grad_(), None, rotary, max_steps=6
    )
    assert stats.reconstruction_error == 0.0


# ---- Lightning, accelerate ---------------------------------------------------------------------


def test_lightning_module() -> None:
    needed("lightning")
    metrics, last = printed("lightning_module").splitlines()[-2:]
    found = {name: float(value) for name, value in re.findall(r"(\S+) ([\d.e+-]+)", metrics)}
    assert found["accuracy"] > 0.85
    assert found["solver/reconstruction_error"] == 0 and found["solver/converged"] == 1
    assert last.startswith("in float32: Stats(")


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
def test_lightning_resumes_with_the_same_bits(tmp_path: Path, precision: Any) -> None:
    needed("lightning")
    lightning = example("lightning_module")
    some = {"precision": precision, "limit_train_batches": 3}
    whole = lightning.fit(str(tmp_path / "whole"), 3, **some)
    lightning.fit(str(tmp_path / "cut"), 1, **some)
    cut = lightning.fit(str(tmp_path / "cut"), 3, resume=True, **some)
    assert whole.global_step == cut.global_step == 9
    assert same(weights(whole.lightning_module), weights(cut.lightning_module))


@pytest.mark.parametrize("processes", [1, 2])
def test_accelerate_loop(processes: int, tmp_path: Path) -> None:
    needed("accelerate")
    lines = printed("accelerate_loop", str(tmp_path / "run"), processes=processes).splitlines()
    assert len(lines) == 5  # of the first process alone
    assert all("'reconstruction_error': 0.0" in line for line in lines[:4])
    (accuracy,) = re.findall(r"held-out accuracy ([\d.]+)%", lines[-1])
    assert float(accuracy) > 80


def test_accelerate_goes_on_with_the_same_bits(tmp_path: Path) -> None:
    needed("accelerate")
    loop, state = example("accelerate_loop"), importlib.import_module("accelerate.state")
    weights = []
    for folder, epochs in (("whole", 2), ("cut", 1), ("cut", 1)):
        state.AcceleratorState._reset_state(reset_partial_state=True)  # others' Accelerators
        weights.append(loop.main(str(tmp_path / folder), epochs))
    state.AcceleratorState._reset_state(reset_partial_state=True)
    assert same(weights[0], weights[2]) and not same(weights[0], weights[1])


# ---- peft --------------------------------------------------------------------------------------


def test_peft_cell() -> None:
    needed("peft")
    before, adapted, last = printed("peft_cell").splitlines()[-3:]
    assert float(before.split()[-1]) < 0.1
    assert "result='converged', reconstruction_error=0," in adapted
    (difference,) = re.findall(r"1024 numbers trained, merged within (\S+)", last)
    assert 0 <= float(difference) < 1e-4


@pytest.fixture
def adapted() -> Any:
    needed("peft")
    peft = importlib.import_module("peft")
    config = peft.LoraConfig(r=4, target_modules=["of_z", "of_x"], init_lora_weights=False)
    return peft.get_peft_model(example("peft_cell").Model(), config)


def test_the_adapters_alone_have_gradients(adapted: Any) -> None:
    adapted(torch.randn(4, 8)).sum().backward()
    found = {name for name, parameter in adapted.named_parameters() if parameter.grad is not None}
    assert len(found) == 4 and all("lora" in name for name in found)
    x = torch.randn(4, 64, requires_grad=True)
    assert_exact_gradients(adapted.equilibrium.f, torch.zeros(4, 64), x, max_steps=6)


@pytest.mark.parametrize("change", ["merge_adapter", "set_adapter", "disable_adapter_layers"])
def test_an_adapter_that_changes_before_backward_is_seen(adapted: Any, change: str) -> None:
    adapted.add_adapter("other", adapted.peft_config["default"])
    out = adapted(torch.randn(4, 8)).sum()
    of = adapted.base_model if change.endswith("layers") else adapted
    getattr(of, change)(*(["other"] if change == "set_adapter" else []))
    with pytest.raises((CaptureError, ReconstructionError)):
        out.backward()


ADAPTERS: dict[str, tuple[str, dict[str, Any]]] = {
    "LoRA": ("LoraConfig", {"r": 4}),
    "DoRA": ("LoraConfig", {"r": 4, "use_dora": True}),
    "LoHa": ("LoHaConfig", {"r": 4}),
    "IA3": ("IA3Config", {"feedforward_modules": []}),
    "OFT": ("OFTConfig", {"r": 0, "oft_block_size": 8}),
    "BOFT": ("BOFTConfig", {"boft_block_size": 8}),
    "VeRA": ("VeraConfig", {"r": 4}),
    "AdaLoRA": ("AdaLoraConfig", {"init_r": 4, "total_step": 10}),
    "FourierFT": ("FourierFTConfig", {"n_frequency": 10}),
}


@pytest.fixture
def environment_restored() -> Iterator[None]:
    """Without a GPU, BOFT leaves CC and CXX set to gcc, with which Inductor cannot link."""
    with mock.patch.dict(os.environ):
        yield


@pytest.mark.usefixtures("environment_restored")
@pytest.mark.parametrize("kind", ADAPTERS)
def test_kinds_of_adapters(kind: str) -> None:
    needed("peft")
    peft, (config, options) = importlib.import_module("peft"), ADAPTERS[kind]
    options = {**options, "target_modules": ["of_z", "of_x"]}
    model: Any = peft.get_peft_model(example("peft_cell").Model(), getattr(peft, config)(**options))
    trainable = [p for p in model.parameters() if p.requires_grad]
    x, optimizer = torch.randn(16, 8), torch.optim.SGD(trainable, 0.1)
    untrained = model(x).detach()
    for _ in range(2):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        assert model.equilibrium.stats.reconstruction_error == 0.0
        optimizer.step()
    model.eval().equilibrium.tol = None
    expected = model(x)
    assert not torch.equal(expected, untrained)
    # The roundings of the merged weights, through 48 evaluations.
    torch.testing.assert_close(model.merge_and_unload()(x), expected, atol=1e-4, rtol=1e-4)


def test_lora_on_the_parameters_of_a_linear_cell() -> None:
    needed("peft")
    peft = importlib.import_module("peft")
    model = nn.Sequential(nn.Linear(8, 32), RevDEQ(LinearCell(32, 32), max_steps=8))
    config = peft.LoraConfig(r=4, target_modules=[], target_parameters=["1.f.W"])
    adapted = peft.get_peft_model(model, config)
    for name, parameter in adapted.named_parameters():
        if "lora" in name:
            nn.init.normal_(parameter, std=0.1)
    x = torch.randn(4, 8)
    expected = adapted(x)
    expected.sum().backward()
    found = {name for name, parameter in adapted.named_parameters() if parameter.grad is not None}
    assert len(found) == 2 and all("lora" in name for name in found)
    torch.testing.assert_close(adapted.merge_and_unload()(x), expected)


# ---- PyTorch Geometric, skorch -----------------------------------------------------------------


def test_pyg_equilibrium() -> None:
    needed("torch_geometric")
    *rows, last = printed("pyg_equilibrium").splitlines()[-4:]
    assert all("'converged': 1" in row for row in rows)
    (accuracy, error) = re.findall(r"accuracy ([\d.]+)% .* error (\S+)", last)[0]
    assert float(accuracy) > 60 and float(error) == 0


def test_graphs_joined_by_a_loader_are_those_alone() -> None:
    needed("torch_geometric")
    pyg = example("pyg_equilibrium")
    data, loader = (
        importlib.import_module(f"torch_geometric.{name}") for name in ("data", "loader")
    )
    graphs = []
    for nodes in (5, 9):
        edges = torch.stack([torch.arange(nodes), torch.arange(nodes).roll(1)])
        graphs.append(data.Data(x=torch.randn(nodes, 3), edge_index=edges))
    model = pyg.Network(3, 2)
    model.equilibrium.tol = None
    (joined,) = loader.DataLoader(graphs, batch_size=2)
    apart = [model(graph.x, graph.edge_index) for graph in graphs]
    torch.testing.assert_close(model(joined.x, joined.edge_index), torch.cat(apart))
    x = torch.randn(14, 16, requires_grad=True)
    cell = model.equilibrium.f
    assert_exact_gradients(cell, torch.zeros(14, 16), x, joined.edge_index, max_steps=6)


def test_skorch_classifier() -> None:
    needed("skorch")
    *rows, best = printed("skorch_classifier").splitlines()[-5:]
    scores = [float(row.split()[-1]) for row in rows]
    assert len(scores) == 4 and scores[0] < 0.8 < 0.9 < max(scores)
    assert "'solver_reconstruction_error': 0.0" in best


def test_a_fitted_classifier_is_pickled_and_a_bad_option_refused() -> None:
    needed("skorch")
    skorch, (X, y) = importlib.import_module("skorch"), example("skorch_classifier").spirals(60)
    module = example("skorch_classifier").Classifier
    net = skorch.NeuralNetClassifier(module, criterion=nn.CrossEntropyLoss, verbose=0)
    net.set_params(max_epochs=1, train_split=None, module__max_steps=3).fit(X, y)
    again = pickle.loads(pickle.dumps(net))
    assert (again.predict_proba(X) == net.predict_proba(X)).all()
    assert again.module_.equilibrium.max_steps == 3
    with pytest.raises(ValueError, match="max_steps: expected an integer of at least 1"):
        net.set_params(module__max_steps=0)
