"""``LanguageModel``: tokens to their embeddings, to an equilibrium, to logits of the next token."""

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
        vocab_size: tokens.
        width: features of a token; a multiple of heads, with an even number for each head.
        heads: of the attention.
        context: most tokens that are read at once.
        block: "modern": ``ModernBlock``, rotary positions, RMSNorm around the layer. "paper":
            ``PaperBlock``, learned positions, no norm around the layer.
        hidden: features inside the MLP. None: 4 width, for "modern" 8/3 width up to a multiple of
            16, which is about as many parameters as 4 width without a gate.
        tied_head: the embedding gives the logits too.
        dropout: share of the embedding's and of the branches' outputs set to 0 in training. Within
            the layer one mask for the solve (``rng="shared"``): what is solved stays one f. With 0
            nothing is random (``rng="none"``).
        steps: of the solve, at most; each is two evaluations of the block.
        beta: as in ``solve``, and so are tol, state and adjoint; see ``ModelConfig``.

    Raises:
        ValueError: names the field that cannot be as given.
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
        """Refuse what cannot be, before a model is built."""
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
                f"{self.width // self.heads}; rotary positions turn pairs of them"
            )
        flag("tied_head", self.tied_head)
        number("dropout", self.dropout, 0, 1, least=True)

    @classmethod
    def paper(cls, **changes: Any) -> LanguageConfig:
        """That of the paper's Wikitext-103 experiment: 95.9 M parameters, tokens of GPT-2.

        `changes` are fields to set otherwise. Source: arXiv 2509.12917 and its authors' code. The
        code makes one more LayerNorm, which it never calls; it is left out here, where gradients
        are exchanged of every parameter that there is.
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
        """`hidden`, or what it is where it was not given."""
        if self.hidden is not None:
            return self.hidden
        return 4 * self.width if self.block == "paper" else 16 * math.ceil(self.width / 6)


class LanguageModel(EquilibriumModel):
    """Logits of the next token, from the equilibrium z = f(z, x) of the embedded tokens x.

    Args:
        config: see ``LanguageConfig``.
        options: of ``solve``, over those of the config: ``max_steps=draw`` for a depth drawn for
            every call, ``store_last=4``, ``rng="none"``, a beta that is a Parameter.

    Attributes:
        equilibrium: the ``RevDEQ`` layer.
        cell: its f, a ``ModernBlock`` or a ``PaperBlock``.
        stats: of the last solve. See ``Stats``.

    Beginning: embeddings and head have the standard deviation 0.02, for small logits; "modern"
    brings x to unit mean square before the layer, see ``ModernBlock``. "paper" with a head of its
    own has PyTorch's defaults, embeddings of unit deviation among them, as the paper's has.

    No buffers are kept, so that a model made on the meta device needs ``to_empty`` and a state
    dict, or ``reset_parameters``, and nothing else.
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
        """The f of the equilibrium."""
        return cast("Block", self.equilibrium.f)

    def reset_parameters(self) -> None:
        """Begin anew: for a model that was built on the meta device, after ``to_empty``."""
        super().reset_parameters()
        self._begin()

    def _begin(self) -> None:
        if self.config.block == "paper" and not self.config.tied_head:
            return
        for part in (self.embedding, self.position, self.head):
            if part is not None:
                nn.init.normal_(part.weight, std=EMBEDDING_STD)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits of the token after each.

        Args:
            tokens: int64 (batch, time), 1 to context tokens, each below vocab_size.

        Returns:
            (batch, time, vocab_size), of the parameters' dtype, or of autocast's.

        Raises:
            ValueError, TypeError: the tokens are not as described.
            IndexError: on a CPU, names a token that is not in the vocabulary; a GPU's own error
                otherwise.
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
            tokens: int64 (batch, time), at least one; of more than context the last ones are read.
            new_tokens: how many to add, 0 or more.
            temperature: logits are divided by it; 0 takes the most probable token.
            top_k: draw among the k most probable tokens; None: all.
            top_p: draw among the most probable tokens that together reach this probability, in
                (0, 1]; None: all.
            generator: on the tokens' device, to draw from; None: torch's own.
            warm_start: begin at the equilibrium of the text before. Attention is causal, so that
                earlier tokens stay there: their keys and values are kept, and the new token alone
                is solved, from zeros, with a residual of its own. The logits differ from those of
                ``forward`` by what tol allows. Where the solve before did not reach its tol, or
                there is none, nothing says that there is an equilibrium, and the whole text is
                solved as in ``forward``; so it is beyond `context` tokens, where every position
                changes. False: always the whole text.

        Returns:
            int64 (batch, time + new_tokens): the tokens, and the new ones.

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
    """Refuse what is no batch of texts, or longer than `most`; reads nothing from the device."""
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
