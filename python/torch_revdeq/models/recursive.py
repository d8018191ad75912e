"""``RecursiveModel``: one small net solves a puzzle by improving its answer many times."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from ..layer import RevDEQ
from ..options.table import one_of
from .base import EquilibriumModel, embedded
from .blocks import rotations
from .config import ModelConfig, whole
from .float32_sums import Embedding
from .recursion import Mix, MixingAttention, MixingMLP, PostNormBlock, Recursion, State

MIXING = ("mlp", "attention")
HALT_BIAS = -5.0
"""The initial halting logit: an untrained model does not halt."""


@dataclass(frozen=True, kw_only=True)
class RecursiveConfig(ModelConfig):
    """A recursive reasoning model.

    Attributes:
        vocab_size: number of tokens of questions and answers.
        length: positions of a question, and of its answer.
        width: features per position.
        layers: number of blocks of the net.
        hidden: hidden features of a block's MLP. None: 8/3 width, rounded up to a multiple of 16.
        mixing: the layer that mixes positions: "mlp", over all positions, best for small grids;
            "attention", with rotary positions.
        heads: number of attention heads; width must be a multiple, with an even number per head.
        latent_steps: updates of the latent per update of the answer, in every recursion.
        steps: solver steps, of two recursions each.
        beta: as in ``solve``, and so are tol, state and adjoint; see ``ModelConfig``.

    Raises:
        ValueError: names the invalid field.
    """

    vocab_size: int
    length: int
    width: int = 64
    layers: int = 2
    hidden: int | None = None
    mixing: str = "mlp"
    heads: int = 4
    latent_steps: int = 3
    steps: int = 4

    def __post_init__(self) -> None:
        """Check the fields, before a model is built."""
        super().__post_init__()
        for name in ("vocab_size", "length", "width", "layers", "heads", "latent_steps", "steps"):
            whole(name, getattr(self, name))
        if self.hidden is not None:
            whole("hidden", self.hidden)
        one_of("mixing", self.mixing, MIXING)
        if self.mixing == "attention" and self.width % (2 * self.heads):
            raise ValueError(
                f"width: expected a multiple of 2 * heads={2 * self.heads}, got {self.width}; "
                "every head gets an equal share, in which rotary positions rotate pairs"
            )

    @classmethod
    def trm(cls, vocab_size: int, length: int, **changes: Any) -> RecursiveConfig:
        """The sizes of TRM for grids: width 512, 2 layers, 6 updates of the latent.

        `changes` override fields. Source: arXiv 2510.04871. There a pass has 3 recursions, of which
        the last is differentiated; here it has 4, in 2 steps.
        """
        values: dict[str, Any] = {"width": 512, "hidden": 1536, "heads": 8}
        values |= {"latent_steps": 6, "steps": 2}
        return cls(vocab_size=vocab_size, length=length, **{**values, **changes})

    @property
    def mlp_features(self) -> int:
        """`hidden`, or its default."""
        return gated(self.width) if self.hidden is None else self.hidden


class Carry(NamedTuple):
    """The solver state of the samples: the pair (y, z), each an answer and a latent.

    All four tensors are (batch, length, width), and detached.
    """

    y: State
    z: State


class Output(NamedTuple):
    """What a pass returns.

    Attributes:
        logits: of the token at every position, (batch, length, vocab_size).
        halt: the logit that the answer is right, (batch,).
        carry: the state from which the next pass continues.
    """

    logits: Tensor
    halt: Tensor
    carry: Carry


class Prediction(NamedTuple):
    """What ``RecursiveModel.predict`` returns.

    Attributes:
        tokens: the answers, int64 (batch, length).
        confidence: the model's probability that each answer is right, (batch,).
        passes: the number of passes that each took, int64 (batch,).
    """

    tokens: Tensor
    confidence: Tensor
    passes: Tensor


class RecursiveModel(EquilibriumModel):
    """Answers puzzles, improving the answer in each pass; differentiates all its recursions.

    A pass is one solve of f((answer, latent), x), a ``Recursion`` whose input x is the question. It
    begins where the previous pass ended, a state that the caller passes from call to call:

        output = model(tokens)                  # a first pass
        output = model(tokens, output.carry)    # continues, as if the solve had not ended
        carry = model.restart(output.carry, output.halt > 0)

    Each pass has its own loss ("deep supervision"); a carry passes no gradient on.

    Args:
        config: see ``RecursiveConfig``.
        options: options of ``solve``, which override those of the config. They also select how a
            pass is differentiated: ``adjoint="backprop"`` stores all activations, for the same
            gradient; ``backward_steps=1`` differentiates only the last step, of two recursions.

    Attributes:
        equilibrium: the ``RevDEQ`` layer.
        cell: its f, the ``Recursion``.
        stats: of the last pass. See ``Stats``.

    The initial answer and latent of every question are two buffers, drawn once. The net is that of
    arXiv 2510.04871, with three differences. Branches are initialized with a small gain
    (``PostNormBlock``). Every norm is over the features; there, the norm after an MLP over
    positions is over the positions. And the halting logit is computed from the mean over the
    positions; there, from an extra position before the question.
    """

    answer_start: Tensor
    latent_start: Tensor

    def __init__(self, config: RecursiveConfig, **options: Any) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.embedding = Embedding(config.vocab_size, width)
        cell = Recursion([self._block() for _ in range(config.layers)], config.latent_steps)
        given = {**config.solver_options(), "max_steps": config.steps, "rng": "none"}
        self.equilibrium = RevDEQ(cell, **{**given, **options})
        self.head = nn.Linear(width, config.vocab_size, bias=False)
        self.halt = nn.Linear(width, 1)
        self.register_buffer("answer_start", torch.empty(width))
        self.register_buffer("latent_start", torch.empty(width))
        self._begin()

    def _block(self) -> PostNormBlock:
        config = self.config
        if config.mixing == "mlp":
            mix: Mix = MixingMLP(config.length, gated(config.length))
        else:
            mix = MixingAttention(config.width, config.heads)
        return PostNormBlock(mix, config.width, config.mlp_features)

    @property
    def cell(self) -> Recursion:
        """The cell of the equilibrium layer."""
        return cast("Recursion", self.equilibrium.f)

    def reset_parameters(self) -> None:
        """Initialize all parameters: for a model built on the meta device, after ``to_empty``."""
        super().reset_parameters()
        self._begin()

    @torch.no_grad()
    def _begin(self) -> None:
        for part in (self.embedding, self.head):
            nn.init.trunc_normal_(part.weight, std=self.config.width**-0.5)
        nn.init.zeros_(self.halt.weight)
        nn.init.constant_(self.halt.bias, HALT_BIAS)
        for start in (self.answer_start, self.latent_start):
            nn.init.trunc_normal_(start)

    def forward(self, tokens: Tensor, carry: Carry | None = None) -> Output:
        """One pass: `steps` steps, of two recursions each.

        Args:
            tokens: int64 (batch, length), each below vocab_size.
            carry: of the previous pass, for the same samples in the same order; None: a first pass.

        Raises:
            ValueError, TypeError: tokens or carry are not as described.
            IndexError: a token is not in the vocabulary (on a CPU; on a GPU, CUDA's own error).
            RangeError, ReconstructionError: see ``solve``; the latter from backward().
        """
        x, rotation = self.embed(tokens)
        carry = self.start(len(tokens)) if carry is None else self._checked(carry, len(tokens))
        solution = self.equilibrium.solve(x, rotation, z0=carry.z, y0=carry.y)
        answer = solution.z[0]
        halt = self.halt(answer.mean(1))[:, 0]
        return Output(self.head(answer), halt, _detached(solution.y, solution.z))

    def embed(self, tokens: Tensor) -> tuple[Tensor, Tensor | None]:
        """x (batch, length, width) for questions, initially of unit mean square, and the rotation.

        The rotation is None with mixing="mlp".
        """
        config = self.config
        if tokens.dtype != torch.int64:
            raise TypeError(f"tokens: expected int64, got {tokens.dtype}; tokens.long() makes it")
        if tokens.dim() != 2 or tokens.shape[1] != config.length:
            raise ValueError(
                f"tokens: expected the shape (batch, {config.length}), got {tuple(tokens.shape)}; "
                "config.length is the number of tokens per question"
            )
        x = config.width**0.5 * embedded(tokens, self.embedding)
        if config.mixing == "mlp":
            return x, None
        return x, rotations(0, config.length, config.width // config.heads, x)

    def start(self, batch: int) -> Carry:
        """The initial carry for `batch` questions."""
        shape = (batch, self.config.length, self.config.width)
        state = (self.answer_start.expand(shape), self.latent_start.expand(shape))
        return _detached(state, state)

    def restart(self, carry: Carry, which: Tensor) -> Carry:
        """The carry with the samples selected by `which`, bool (batch,), reset to the start.

        Raises:
            ValueError, TypeError: an argument is not as described.
        """
        batch = len(self._checked(carry).z[0])
        if not isinstance(which, Tensor) or which.dtype != torch.bool:
            got = which.dtype if isinstance(which, Tensor) else type(which).__name__
            raise TypeError(
                f"which: expected a bool tensor, one for each sample, got {got}; output.halt > 0 "
                "selects the samples that halt"
            )
        if which.shape != (batch,):
            raise ValueError(
                f"which: expected the shape ({batch},), one for each sample of the carry, got "
                f"{tuple(which.shape)}"
            )
        fresh, which = self.start(batch), which[:, None, None]
        y, z = (
            tuple(torch.where(which, new, old) for new, old in zip(*halves, strict=True))
            for halves in zip(fresh, carry, strict=True)
        )
        return Carry(cast("State", y), cast("State", z))

    def _checked(self, carry: Carry, batch: int | None = None) -> Carry:
        if not isinstance(carry, Carry):
            raise TypeError(
                f"carry: expected a Carry or None, got {type(carry).__name__}; pass output.carry "
                "of the previous pass, or model.start(batch)"
            )
        batch = len(carry.z[0]) if batch is None else batch
        shape = (batch, self.config.length, self.config.width)
        for leaf in (*carry.y, *carry.z):
            if leaf.shape != shape:
                raise ValueError(
                    f"carry: expected tensors of the shape {shape}, got {tuple(leaf.shape)}; pass "
                    "that of the previous pass, for the same samples"
                )
        return carry

    @torch.no_grad()
    def predict(self, tokens: Tensor, passes: int = 16, *, halt: bool = False) -> Prediction:
        """Answer questions, in eval mode and without gradients.

        Args:
            tokens: as in ``forward``.
            passes: maximum number of passes.
            halt: keep each sample's answer from the pass after which its halting logit is above 0,
                and stop when all are. False: the answer of the last pass.

        Raises:
            ValueError, TypeError: an argument is not as described.
        """
        whole("passes", passes)
        modes = [(module, module.training) for module in self.modules()]
        self.eval()
        try:
            return self._predict(tokens, passes, halt)
        finally:
            for module, mode in modes:
                module.training = mode

    def _predict(self, tokens: Tensor, passes: int, halt: bool) -> Prediction:
        output = self(tokens)
        found = Prediction(*_answers(output), torch.ones_like(tokens[:, 0]))
        moving = torch.ones_like(output.halt, dtype=torch.bool)
        for _ in range(passes - 1):
            if halt:
                moving = moving & (output.halt <= 0)
                if not moving.any():
                    break
            output = self(tokens, output.carry)
            answers, confidence = _answers(output)
            found = Prediction(
                torch.where(moving[:, None], answers, found.tokens),
                torch.where(moving, confidence, found.confidence),
                found.passes + moving,
            )
        return found


def gated(width: int) -> int:
    """Hidden features of a gated MLP with about as many parameters as 4 width without a gate."""
    return 16 * math.ceil(width / 6)


def _detached(y: State, z: State) -> Carry:
    return Carry((y[0].detach(), y[1].detach()), (z[0].detach(), z[1].detach()))


def _answers(output: Output) -> tuple[Tensor, Tensor]:
    return output.logits.argmax(-1), output.halt.sigmoid()
