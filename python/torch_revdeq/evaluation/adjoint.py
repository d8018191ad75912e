"""``Adjoint``, the base class of the adjoints: when they evaluate f, which options they take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.autograd import forward_ad

from ..runtime.transforms import has_tangent, inside_transform

MOST = frozenset({"tol", "per_sample", "process_group", "frac_bits", "save_at", "backward_steps"})
"""The options of an adjoint that may stop at any step and has access to every state."""


class Adjoint:
    """A method of computing a solve's gradients: ``solve(f, z0, adjoint=Mine())``.

    Subclass it, or one of the adjoints in ``torch_revdeq.adjoints``, and define ``solve``. The
    flags say what f may hold and do; each is False by default.

    An adjoint affects gradients, not values: where no gradients are wanted, z and y are those of
    "reversible", and ``solve`` is not called.

    Attributes:
        name: the name in ``Stats.adjoint`` and errors; by default that of the subclass.
        takes: which of the options in ``LIMITED`` (``torch_revdeq.options.table``) it supports.
        evaluates_once: f is evaluated only in the forward pass. Otherwise f is checked to read the
            same in the backward pass, and what it writes there is restored.
        fills_saved: tensors that autograd saved are recomputed in place: f may not write arguments.
        takes_sharded: f may be sharded by FSDP.
        takes_transforms: with a float state, a solve may be part of a torch.func transform.
        takes_forward_mode: with a float state, also of torch.autograd.forward_ad.
        takes_computed: tensors that functional_call put into f become arguments of the solve.
        exchanges_parameters: puts f's parameters in place by itself.
    """

    name: str = ""
    takes: frozenset[str] = frozenset()
    evaluates_once: bool = False
    fills_saved: bool = False
    takes_sharded: bool = False
    takes_transforms: bool = False
    takes_forward_mode: bool = False
    takes_computed: bool = False
    exchanges_parameters: bool = False

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "name" not in vars(cls):
            cls.name = cls.__name__

    def prepare(self, f: Any, args: tuple[Any, ...]) -> tuple[Any, tuple[Any, ...]]:
        """f and its arguments as this adjoint needs them, before anything else happens."""
        return f, args

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    def solve(self, problem: Any) -> Any:
        """Run a ``Problem`` and return its ``Outputs``; grad mode is on, or a transform is active.

        z, y, saved and aux are lists of leaves, like those of z0, connected by autograd to the
        inputs of the problem.
        """
        raise NotImplementedError(f"{type(self).__name__}.solve: expected to be defined")

    def check_transforms(self, exact: bool, tensors: Sequence[Tensor]) -> bool:
        """Whether the solve is part of a transform; RuntimeError for an unsupported one.

        `tensors` are those that the solve is known to read.
        """
        functional = inside_transform()
        outside = not functional and forward_ad._current_level >= 0
        if outside and self.takes_transforms and not self.takes_forward_mode:
            raise RuntimeError(
                f"solve: expected forward mode to come from torch.func.jvp with adjoint="
                f"{self.name!r}, got torch.autograd.forward_ad; choose torch.func.jvp, or "
                "adjoint='backprop'"
            )
        if not functional and not has_tangent(tensors):
            return False
        if not self.takes_transforms or exact:
            what = "a transform of torch.func" if functional else "forward-mode derivatives"
            raise RuntimeError(
                f"solve: expected to be differentiated by backward() or torch.autograd.grad with "
                f"adjoint={self.name!r}{' and an exact state' if exact else ''}, got {what}; "
                "choose adjoint='functional' or 'backprop', and state=torch.float32 or "
                "torch.float64"
            )
        return True


ADJOINTS: dict[str, Adjoint] = {}
"""The adjoints with names: ``adjoints/registry.py`` enters them, and the options read them."""
