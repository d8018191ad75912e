"""The baseline of ``train_lm.py``: a trigram model of bytes, by counting.

    p(c | a b) = w3 n(abc)/n(ab) + w2 n(bc)/n(b) + w1 n(c)/n + w0/256

If a context was never seen, its ratio is replaced by that of the shorter context. The weights w
depend on how often the context ab was seen, in classes of powers of two, and are fitted by EM on
separate files (Jelinek and Mercer 1980).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .errors import RunError

BYTES = 256
BUCKETS = 32
"""Classes of contexts: never seen, seen once, 2 to 3 times, 4 to 7 times, and so on."""


class Trigram:
    """Counts of bytes, pairs and triples, and the weights of the four distributions.

    Args:
        files: the text, a uint8 tensor per file; contexts do not cross file boundaries.
        held_out: one in `held_out` files is used to fit the weights. The final counts include all
            files.
    """

    def __init__(self, files: Sequence[Tensor], *, held_out: int = 10) -> None:
        apart = list(files[::held_out])
        rest = [file for i, file in enumerate(files) if i % held_out]
        if not rest:
            raise RunError(f"files: expected at least 2 to fit a trigram model, got {len(files)}")
        self.weights = torch.full((BUCKETS, 4), 0.25, dtype=torch.float64)
        self._count(rest)
        self._fit(apart)
        self._count(files)

    def bits_per_byte(self, files: Sequence[Tensor]) -> float:
        """The mean of -log2 p over all bytes with two bytes before them in their file."""
        total, count = 0.0, 0
        for file in files:
            p, bucket = self._parts(file)
            total -= (p * self.weights[bucket]).sum(1).log2().sum().item()
            count += len(p)
        return total / count if count else math.nan

    def _count(self, files: Sequence[Tensor]) -> None:
        """Count triples and pairs, each coded as one number."""
        triples = torch.zeros(BYTES**3, dtype=torch.int32)
        for file in files:
            code = _triples(file)
            triples.index_add_(0, code, torch.ones_like(code, dtype=torch.int32))
        self.triples = triples
        self.pairs = triples.view(-1, BYTES).sum(1)  # of the context: the first two bytes
        seconds = triples.view(BYTES, BYTES, BYTES).sum(0)
        self.seconds = seconds.flatten()
        self.singles = seconds.sum(1)
        self.bytes = seconds.sum(0)

    def _parts(self, file: Tensor) -> tuple[Tensor, Tensor]:
        """The four probabilities of each byte, float64 (bytes, 4), and its context's bucket."""
        code = _triples(file)
        context, pair = code // BYTES, code % BYTES**2
        seen = self.pairs[context]
        once = self.bytes[code % BYTES].double() / self.bytes.sum()
        twice = _ratio(self.seconds[pair], self.singles[pair // BYTES], once)
        thrice = _ratio(self.triples[code], seen, twice)
        uniform = torch.full_like(once, 1 / BYTES)
        return torch.stack([thrice, twice, once, uniform], 1), _bucket(seen)

    def _fit(self, files: Sequence[Tensor], rounds: int = 30) -> None:
        """EM: the share of each part in the probability of each byte, averaged."""
        parts = [self._parts(file) for file in files]
        p, bucket = (torch.cat(column) for column in zip(*parts, strict=True))
        for _ in range(rounds):
            share = p * self.weights[bucket]
            share /= share.sum(1, keepdim=True)
            # One count for each part, so that classes without data stay defined.
            total = torch.ones_like(self.weights).index_add_(0, bucket, share)
            self.weights = total / total.sum(1, keepdim=True)


def _triples(file: Tensor) -> Tensor:
    """Each byte of a file with the two before it, coded as one number; int64."""
    wide = file.long()
    return (wide[:-2] * BYTES + wide[1:-1]) * BYTES + wide[2:]


def _ratio(count: Tensor, total: Tensor, otherwise: Tensor) -> Tensor:
    """count / total, or `otherwise` where the total is 0."""
    return torch.where(total > 0, count.double() / total.clamp(min=1).double(), otherwise)


def _bucket(count: Tensor) -> Tensor:
    """0 for 0, and 1 + floor(log2 n) for n."""
    return torch.frexp(count.double()).exponent.long()
