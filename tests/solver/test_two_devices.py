"""What lies on a GPU that is not the current one: which stream is waited for, which is captured."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from revdeq_kernels.core.capture import capturing
from tests.two_gpus import FIRST, SECOND, OnGpu, PinnedMemory, TwoGpus
from torch_revdeq import graphed
from torch_revdeq.runtime.deferred import DeferredChecks, PendingCheck, ReconstructionError
from torch_revdeq.runtime.host_copy import HostCopy

DEVICES = pytest.mark.parametrize("device", [FIRST, SECOND], ids=str)


@DEVICES
def test_a_number_is_read_when_its_own_device_has_sent_it(
    device: torch.device, two_gpus: TwoGpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    value: Any = OnGpu(two_gpus, device, 0.25)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "empty", PinnedMemory)
        copy = HostCopy(value)
    assert not copy.here()
    assert copy.read() == 0.25
    assert copy.here()


@DEVICES
def test_a_check_that_failed_raises_wherever_it_ran(
    device: torch.device, two_gpus: TwoGpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    checks = DeferredChecks()
    failed: Any = OnGpu(two_gpus, device, 1.0)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "empty", PinnedMemory)
        checks.add(PendingCheck(failed, lambda: ReconstructionError("lost")))
    checks.poll()  # it is still on its way
    with pytest.raises(ReconstructionError, match="lost"):
        checks.poll(wait=True)


def test_a_capture_is_seen_on_the_device_of_the_tensors_and_on_the_current_one(
    two_gpus: TwoGpus,
) -> None:
    devices = (FIRST, SECOND, torch.device("cpu"))
    for captured, seen in (
        (set(), [False, False, False]),
        ({0}, [True, True, False]),  # the first is current
        ({1}, [False, True, False]),
    ):
        two_gpus.captured = captured
        assert [capturing(device) for device in devices] == seen
        assert two_gpus.current == 0


def test_from_a_capture_on_another_device_a_number_is_read_where_it_is(two_gpus: TwoGpus) -> None:
    two_gpus.captured = {1}
    value: Any = OnGpu(two_gpus, SECOND, 0.25)
    copy = HostCopy(value)  # memory that is pinned would end the capture
    value.number = 0.5  # as a replay writes it
    assert copy.here() and copy.read() == 0.5


def test_a_layer_is_captured_on_its_own_device(
    two_gpus: TwoGpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    currents: list[int] = []

    class Layer:
        beta = 0.5
        options: dict[str, Any] = {"rng": "none", "frac_bits": 18}  # noqa: RUF012

        def __call__(self, *inputs: Any) -> None:
            currents.append(two_gpus.current)

    class Sample:
        device, dtype = SECOND, torch.float32

        def detach(self) -> Sample:
            return self

    def capture(layer: Layer, samples: Any, **options: Any) -> str:
        layer(*samples)
        return "captured"

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", capture)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: torch.zeros(1))
    layer: Any = Layer()
    sample: Any = Sample()
    assert graphed(layer, sample) == "captured"
    assert currents == [1, 1] and two_gpus.current == 0
