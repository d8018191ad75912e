"""The operands of instructions: registers, special registers, immediates, addresses."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np

from tools.ptx.errors import Missing
from tools.ptx.kernel import Kernel
from tools.ptx.registers import Register, Unwritten, poison
from tools.ptx.types import DTYPES, SIGNED, UNSIGNED, Array, size_of

SPECIAL = re.compile(r"%(n?tid|n?ctaid)\.[xyz]|%(laneid|warpid)")
FLOAT = re.compile(r"0[fF]([0-9a-fA-F]{8})|0[dD]([0-9a-fA-F]{16})")
INTEGER = re.compile(r"-?(0[xX][\da-fA-F]+|\d+)U?")
ADDRESS = re.compile(r"\[\s*([%$\w@.]+)\s*(?:\+\s*(-?\w+)\s*)?\]")


class Operands:
    """The registers of the running threads, and functions that read and write them.

    Attributes:
        count: Threads that run at once.
        mask: The threads that execute an instruction; None means all.
        registers: The values of the registers.
        special: The special registers.
    """

    count: int

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.mask: Array | None = None
        self.special: dict[str, Array] = {}
        self.registers: list[Register] = []
        self._readers: dict[tuple[str, str], Callable[[], Array]] = {}
        self._unwritten = [Unwritten(name) for name in kernel.registers]
        self._index = {name: k for k, name in enumerate(kernel.registers)}
        self._sizes = [size_of(kind) for kind in kernel.registers.values()]
        self._symbols = {name: offset for name, (offset, _) in kernel.parameters.items()}
        self._symbols |= kernel.shared_names

    def read(self, operand: str, kind: str) -> Callable[[], Array]:
        """A function that returns an operand's values as `kind`.

        The array has one element per thread, or a single one if all threads have the same value. It
        must not be modified, because registers share arrays.
        """
        found = self._readers.get((operand, kind))
        if found is None:
            found = self._readers[operand, kind] = self._reader(operand, kind)
        return found

    def _reader(self, operand: str, kind: str) -> Callable[[], Array]:
        dtype = DTYPES[kind]
        index = self._index.get(operand)
        if index is None:
            return self._read_special(operand, dtype) or self._constant(operand, kind)
        registers, held = self.registers, self._sizes[index]
        if held < dtype.itemsize or (dtype == np.bool_) != self._is_predicate(operand):
            raise Missing(f"{operand} of {8 * held} bits, read as .{kind}")
        if held == dtype.itemsize:

            def read() -> Array:
                value = registers[index]
                return value if value.dtype is dtype else value.view(dtype)  # type: ignore[return-value]

            return read
        whole, low = UNSIGNED[held], UNSIGNED[dtype.itemsize]
        return lambda: registers[index].view(whole).astype(low).view(dtype)

    def read_even_unwritten(self, operand: str, kind: str) -> Callable[[], Array]:
        """Like `read`; a register that was never written contains poison."""
        read, index = self.read(operand, kind), self._index.get(operand)
        if index is None:
            return read
        spoiled = poison(DTYPES[kind])
        return lambda: spoiled if isinstance(self.registers[index], Unwritten) else read()

    def read_all(self, operand: str, kind: str) -> Callable[[], Array]:
        """Like `read`, with one element per thread."""
        read = self.read(operand, kind)
        return lambda: self.spread(read())

    def running(self, value: Array) -> Array:
        """The elements of the running threads; other elements are arbitrary."""
        return value if self.mask is None or len(value) == 1 else value[self.mask]

    def spread(self, value: Array) -> Array:
        """The array, expanded to one element per thread."""
        return value if len(value) == self.count else np.repeat(value, self.count)

    def _is_predicate(self, operand: str) -> bool:
        return self.kernel.registers[operand] == "pred"

    def _read_special(self, operand: str, dtype: np.dtype[Any]) -> Callable[[], Array] | None:
        if not operand.startswith("%"):
            return None
        if not SPECIAL.fullmatch(operand):
            raise Missing(operand)
        special, low = self.special, UNSIGNED[dtype.itemsize]
        return lambda: special[operand].astype(low, copy=False).view(dtype)

    def _constant(self, operand: str, kind: str) -> Callable[[], Array]:
        bits, dtype = self.constant_bits(operand, kind), DTYPES[kind]
        if dtype == np.bool_:
            value = np.array([bits != 0])
        elif dtype.itemsize == 16:
            value = np.array([bits & (2**64 - 1), bits >> 64], np.uint64).view(dtype)
        else:
            value = np.array([bits], UNSIGNED[dtype.itemsize]).view(dtype)
        return lambda: value

    def constant_bits(self, operand: str, kind: str) -> int:
        """The bits of an immediate operand, or the address of a symbol."""
        size = size_of(kind)
        if found := FLOAT.fullmatch(operand):
            if size != (4 if found[1] else 8):
                raise Missing(f"{operand} as .{kind}")
            return int(found[1] or found[2], 16)
        symbol, _, offset = operand.partition("+")
        if symbol in self._symbols:
            return self._symbols[symbol] + int(offset or "0", 0)
        if kind in ("f32", "f64") or not INTEGER.fullmatch(operand):
            raise Missing(f"the operand {operand} as .{kind}")
        number = operand.rstrip("U")
        octal = re.fullmatch(r"(-?)0(\d+)", number)
        value = int(f"{octal[1]}0o{octal[2]}", 0) if octal else int(number, 0)
        return value & ((1 << (8 * size)) - 1)

    def writer(self, operand: str, kind: str) -> Callable[[Array], None]:
        """A function that stores values of `kind` for the running threads.

        Values are extended to a wider register, with their sign if they are signed.
        """
        if operand == "_":
            return lambda value: None
        index = self._index.get(operand)
        if index is None:
            raise Missing(f"{operand} as a destination")
        registers, dtype, held = self.registers, DTYPES[kind], self._sizes[index]
        if held < dtype.itemsize or (dtype == np.bool_) != self._is_predicate(operand):
            raise Missing(f"{operand} of {8 * held} bits, written as .{kind}")
        wide = (SIGNED if dtype.kind == "i" else UNSIGNED).get(held)
        bits = dtype if dtype.kind == "i" else UNSIGNED[dtype.itemsize]

        def write(value: Array) -> None:
            if value.dtype is not dtype and value.dtype != dtype:
                raise TypeError(f"{operand}: expected {dtype}, got {value.dtype}")
            if held != dtype.itemsize:
                value = value.view(bits).astype(wide)
            mask = self.mask
            if mask is None:
                registers[index] = value
                return
            old = registers[index]
            if isinstance(old, np.ndarray):
                registers[index] = np.where(mask, value, old.view(value.dtype))
            else:
                registers[index] = old.merge(value, mask)

        return write

    def address(self, operand: str) -> Callable[[], Array]:
        """A function that returns the addresses of ``[register+offset]`` or ``[symbol+offset]``.

        They are uint64, in the form of `read`.
        """
        found = ADDRESS.fullmatch(operand)
        if found is None:
            raise Missing(f"the address {operand}")
        base, offset = found[1], int(found[2] or "0", 0)
        if base not in self._index:
            fixed = np.array([(self.constant_bits(base, "u64") + offset) % 2**64], np.uint64)
            return lambda: fixed
        if self._sizes[self._index[base]] == 8:
            read = self.read(base, "u64")
        else:
            narrow = self.read(base, "u32")
            read = lambda: narrow().astype(np.uint64)  # noqa: E731
        if not offset:
            return read
        addend = np.uint64(offset % 2**64)
        return lambda: read() + addend
