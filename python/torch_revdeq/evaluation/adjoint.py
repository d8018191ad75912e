"""What a way of differentiating a solve says of itself: when f is evaluated, what it takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.autograd import forward_ad

from ..runtime.transforms import has_tangent, inside_transform

MOST = frozenset({"tol", "per_sample", "process_group", "frac_bits", "save_at", "backward_steps"})
"""The options that an adjoint takes which stops where it likes and knows every state."""


class Adjoint:
    """A way of differentiating a solve: ``solve(f, z0, adjoint=Mine())``.

    Subclass it, or one of the adjoints of ``torch_revdeq.adjoints``, and define ``solve``. The
    flags decide what f may hold and do; each is false where nothing is known.

    An adjoint decides about gradients, not about values: where none are wanted, z and y are those
    of "reversible", and ``solve`` is not called.

    Attributes:
        name: what ``Stats.adjoint`` and errors call it; of a subclass that gives none, its own.
        takes: of the options that not every adjoint takes, those that this one does (``LIMITED``
            in ``torch_revdeq.options.table`` names them).
        evaluates_once: f is evaluated in the forward pass alone. Otherwise what f reads is checked
            to be the same on the way back, and what it writes is put back there.
        fills_saved: what autograd saved is computed again in its place: f may not write arguments.
        takes_sharded: f may be sharded by FSDP.
        takes_transforms: with a float state, a solve may be part of a transform of torch.func.
        takes_forward_mode: with a float state, also of torch.autograd.forward_ad.
        takes_computed: gets the tensors that functional_call put in f as arguments of the solve.
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
        """f and its arguments as this adjoint needs them, before anything is looked at."""
        return f, args

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    def solve(self, problem: Any) -> Any:
        """Run a ``Problem``; its ``Outputs``. Called with grad mode on, or inside a transform.

        z, y, saved and aux are leaves, like those of z0, and autograd leads from them to what the
        problem was given.
        """
        raise NotImplementedError(f"{type(self).__name__}.solve: expected to be defined")

    def check_transforms(self, exact: bool, tensors: Sequence[Tensor]) -> bool:
        """Whether the solve is part of a transform that it can be part of; RuntimeError if not.

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
"""The adjoints that have names: ``adjoints/registry.py`` enters them, and options ask them."""
