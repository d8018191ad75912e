"""``LanguageModel``: from tokens to embeddings, an equilibrium, and logits of the next token."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layer import RevDEQ
from ..options.table import one_of
from .base import EquilibriumModel, embedded
from .blocks import BLOCKS, EPS, Block, rotations
from .config import ModelConfig, flag, number, whole
from .float32_sums import Embedding
from .generation import Text, check_generation, sample

EMBEDDING_STD = 0.02


@dataclass(frozen=True, kw_only=True)
class LanguageConfig(ModelConfig):
    """A language model with one equilibrium layer.

    Attributes:
        vocab_size: number of tokens in the vocabulary.
        width: features per token; a multiple of heads, with an even number per head.
        heads: number of attention heads.
        context: maximum number of tokens that are read at once.
        block: "modern": ``ModernBlock``, rotary positions, RMSNorm around the layer. "paper":
            ``PaperBlock``, learned positions, no norm around the layer.
        hidden: hidden features of the MLP. None: 4 width, for "modern" 8/3 width rounded up to a
            multiple of 16, which has about as many parameters as 4 width without a gate.
        tied_head: whether the embedding also computes the logits.
        dropout: share of the embedding's and of the branches' outputs set to 0 in training. In the
            layer one mask is used for the whole solve (``rng="shared"``), so that f stays the same
            function. With 0 nothing is random (``rng="none"``).
        steps: maximum solver steps, of two evaluations of the block each.
        beta: as in ``solve``, and so are tol, state and adjoint; see ``ModelConfig``.

    Raises:
        ValueError: names the invalid field.
    """

    vocab_size: int
    width: int = 256
    heads: int = 4
    context: int = 256
    block: str = "modern"
    hidden: int | None = None
    tied_head: bool = True
    dropout: float = 0.0
    steps: int = 4

    def __post_init__(self) -> None:
        """Check the fields, before a model is built."""
        super().__post_init__()
        for name in ("vocab_size", "width", "heads", "context", "steps"):
            whole(name, getattr(self, name))
        if self.hidden is not None:
            whole("hidden", self.hidden)
        if self.width % self.heads:
            raise ValueError(
                f"width: expected a multiple of heads={self.heads}, got {self.width}; every head "
                "gets an equal share"
            )
        one_of("block", self.block, tuple(BLOCKS))
        if self.block == "modern" and self.width // self.heads % 2:
            raise ValueError(
                f"width: expected an even number of features for each of heads={self.heads}, got "
                f"{self.width // self.heads}; rotary positions rotate pairs of features"
            )
        flag("tied_head", self.tied_head)
        number("dropout", self.dropout, 0, 1, least=True)

    @classmethod
    def paper(cls, **changes: Any) -> LanguageConfig:
        """The config of the paper's Wikitext-103 experiment: 95.9 M parameters, GPT-2 tokens.

        `changes` override fields. Source: arXiv 2509.12917 and its authors' code. That code creates
        one more LayerNorm, which it never calls; it is left out here, because distributed training
        exchanges the gradients of every parameter.
        """
        values: dict[str, Any] = {
            "vocab_size": 50304,
            "width": 768,
            "heads": 12,
            "context": 448,
            "block": "paper",
            "tied_head": False,
            "steps": 4,
            "beta": 0.5,
            "tol": 1e-3,
        }
        return cls(**{**values, **changes})

    @property
    def mlp_features(self) -> int:
        """`hidden`, or its default."""
        if self.hidden is not None:
            return self.hidden
        return 4 * self.width if self.block == "paper" else 16 * math.ceil(self.width / 6)


class LanguageModel(EquilibriumModel):
    """Logits of the next token, from the equilibrium z = f(z, x) of the embedded tokens x.

    Args:
        config: see ``LanguageConfig``.
        options: options of ``solve``, which override those of the config: ``max_steps=draw`` for a
            random depth in every call, ``store_last=4``, ``rng="none"``, a Parameter as beta.

    Attributes:
        equilibrium: the ``RevDEQ`` layer.
        cell: its f, a ``ModernBlock`` or a ``PaperBlock``.
        stats: of the last solve. See ``Stats``.

    Initialization: embeddings and head have standard deviation 0.02, for small logits; "modern"
    normalizes x to unit mean square before the layer, see ``ModernBlock``. "paper" without a tied
    head uses PyTorch's defaults, including embeddings of unit deviation, as in the paper.

    There are no buffers, so a model built on the meta device needs only ``to_empty`` and a state
    dict, or ``reset_parameters``.
    """

    def __init__(self, config: LanguageConfig, **options: Any) -> None:
        super().__init__()
        self.config = config
        width, modern = config.width, config.block == "modern"
        self.embedding = Embedding(config.vocab_size, width)
        self.position = None if modern else Embedding(config.context, width)
        self.norm_in = nn.RMSNorm(width, eps=EPS) if modern else nn.Identity()
        self.dropout = nn.Dropout(config.dropout)
        cell = BLOCKS[config.block](width, config.heads, config.mlp_features, config.dropout)
        given = {**config.solver_options(), "max_steps": config.steps}
        given["rng"] = "shared" if config.dropout else "none"
        self.equilibrium = RevDEQ(cell, **{**given, **options})
        self.norm_out = nn.RMSNorm(width, eps=EPS) if modern else nn.Identity()
        head = None if config.tied_head else nn.Linear(width, config.vocab_size, bias=False)
        self.head = head
        self._begin()

    @property
    def cell(self) -> Block:
        """The cell of the equilibrium layer."""
        return cast("Block", self.equilibrium.f)

    def reset_parameters(self) -> None:
        """Initialize all parameters: for a model built on the meta device, after ``to_empty``."""
        super().reset_parameters()
        self._begin()

    def _begin(self) -> None:
        if self.config.block == "paper" and not self.config.tied_head:
            return
        for part in (self.embedding, self.position, self.head):
            if part is not None:
                nn.init.normal_(part.weight, std=EMBEDDING_STD)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits of the next token, at every position.

        Args:
            tokens: int64 (batch, time), 1 to context tokens, each below vocab_size.

        Returns:
            (batch, time, vocab_size), in the parameters' dtype, or autocast's.

        Raises:
            ValueError, TypeError: the tokens are not as described.
            IndexError: a token is not in the vocabulary (on a CPU; on a GPU, CUDA's own error).
            RangeError, ReconstructionError: see ``solve``; the latter from backward().
        """
        check_tokens(tokens, self.config.context)
        x, rotation = self.embed(tokens)
        return self.logits(self.equilibrium(x, rotation))

    def embed(self, tokens: Tensor, first: int = 0) -> tuple[Tensor, Tensor | None]:
        """x (batch, time, width) for tokens at the positions from `first` on, and their rotation.

        The rotation is None with learned positions.
        """
        x = embedded(tokens, self.embedding)
        time, config = tokens.shape[1], self.config
        if self.position is None:
            rotation = rotations(first, time, config.width // config.heads, x)
        else:
            rotation = None
            x = x + self.position(torch.arange(first, first + time, device=tokens.device))
        return self.dropout(self.norm_in(x)), rotation

    def logits(self, z: Tensor) -> Tensor:
        """Logits (batch, time, vocab_size) of an equilibrium z (batch, time, width)."""
        z = self.norm_out(z)
        return F.linear(z, self.embedding.weight) if self.head is None else self.head(z)

    @torch.no_grad()
    def generate(
        self,
        tokens: Tensor,
        new_tokens: int,
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        generator: torch.Generator | None = None,
        warm_start: bool = True,
    ) -> Tensor:
        """Continue texts, token by token, in eval mode and without gradients.

        Args:
            tokens: int64 (batch, time), at least one; only the last `context` ones are read.
            new_tokens: number of tokens to add, 0 or more.
            temperature: divides the logits; 0 takes the most probable token.
            top_k: sample from the k most probable tokens; None: all.
            top_p: sample from the most probable tokens that together reach this probability, in
                (0, 1]; None: all.
            generator: to sample with, on the tokens' device; None: torch's own.
            warm_start: reuse the equilibrium of the previous tokens. Attention is causal, so they
                keep their equilibrium: their keys and values are cached, and only the new token is
                solved, from zeros, with its own residual. The logits differ from those of
                ``forward`` within tol. If the previous solve did not reach its tol, or has none,
                it may not be at an equilibrium, and the whole text is solved as in ``forward``; the
                same applies beyond `context` tokens, where every position changes. False: always
                solve the whole text.

        Returns:
            int64 (batch, time + new_tokens): the given tokens, and the new ones.

        Raises:
            ValueError, TypeError: an argument is not as described.

        Under FSDP2 call ``torch.distributed.fsdp.register_fsdp_forward_method(model, "generate")``
        first, with the model sharded as one.
        """
        check_tokens(tokens, None)
        check_generation(tokens, self.config.vocab_size, new_tokens, temperature, top_k, top_p)
        modes = [(module, module.training) for module in self.modules()]
        self.eval()
        try:
            text = Text(self, self.config.context, warm_start)
            for _ in range(new_tokens):
                chosen = sample(text.read(tokens), temperature, top_k, top_p, generator)
                tokens = torch.cat((tokens, chosen), 1)
        finally:
            for module, mode in modes:
                module.training = mode
        return tokens


def check_tokens(tokens: Tensor, most: int | None) -> None:
    """Raise unless tokens is a batch of texts of at most `most` tokens; reads no values."""
    if tokens.dtype != torch.int64:
        raise TypeError(f"tokens: expected int64, got {tokens.dtype}; tokens.long() makes it")
    if tokens.dim() != 2:
        raise ValueError(
            f"tokens: expected the shape (batch, time), got {tuple(tokens.shape)}; tokens[None] is "
            "a batch of one"
        )
    if tokens.shape[1] < 1:
        raise ValueError("tokens: expected at least one in every text, got an empty prompt")
    if most is not None and tokens.shape[1] > most:
        raise ValueError(
            f"tokens: expected at most context={most} of them, got {tokens.shape[1]}; pass "
            f"tokens[:, -{most}:], or build the model with a longer context"
        )
