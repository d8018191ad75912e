"""The base class of the models: access to their ``RevDEQ`` layers and solver options."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..layer import RevDEQ, set_solver
from ..options.kept import check_new_of_model, mistaken_of_model
from ..solution import Stats


class EquilibriumModel(nn.Module):
    """A model that contains ``RevDEQ`` layers.

    The options of ``solve`` belong to the layers, not the model: accessing an option, or a similar
    name, on the model raises AttributeError, which says what to call instead.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        """As in nn.Module; AttributeError for an option, which would have no effect here."""
        if name not in self.__dict__:
            check_new_of_model(self, name, value)
        super().__setattr__(name, value)

    def __getattr__(self, name: str) -> Any:
        """As in nn.Module; the error for an option says where it is."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            said = mistaken_of_model(type(self), name)
            if said is None:
                raise
            raise AttributeError(said) from None

    @property
    def equilibria(self) -> list[RevDEQ]:
        """The ``RevDEQ`` layers, in the order in which they are solved."""
        return [module for module in self.modules() if isinstance(module, RevDEQ)]

    @property
    def stats(self) -> Stats | None:
        """Statistics of the last layer's last solve; None before the first. See ``Stats``."""
        return self.equilibria[-1].stats

    def set_solver(self, **options: Any) -> None:
        """Change options of ``solve`` in every layer, as in ``set_solver(max_steps=40, tol=1e-3)``.

        The weights stay the same. A compiled model recompiles at its next call.

        Raises:
            TypeError, ValueError: as ``solve``; no layer is changed then.
        """
        set_solver(self, **options)

    def reset_parameters(self) -> None:
        """Initialize all parameters: for a model built on the meta device, after ``to_empty``."""
        for module in reversed(list(self.modules())):  # a block may override its layers
            reset = getattr(module, "reset_parameters", None)
            if module is not self and callable(reset):
                reset()


def embedded(tokens: Tensor, embedding: nn.Embedding) -> Tensor:
    """The rows of tokens; on a CPU, IndexError that names a token outside the vocabulary."""
    try:
        return embedding(tokens)
    except IndexError as error:
        said = outside(tokens, embedding.num_embeddings)
        if said is None:
            raise
        raise IndexError(said) from error


def outside(tokens: Tensor, vocab_size: int) -> str | None:
    """The error message for tokens outside the vocabulary, or None; reads them from the device."""
    low, high = (int(end) for end in tokens.aminmax()) if tokens.numel() else (0, 0)
    if low >= 0 and high < vocab_size:
        return None
    return (
        f"tokens: expected each in 0 to {vocab_size - 1}, got {low if low < 0 else high}; was the "
        f"text encoded for a vocabulary other than the config's, vocab_size={vocab_size}?"
    )
