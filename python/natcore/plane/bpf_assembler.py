"""An assembler of BPF programs: instructions, and labels for jumps. No compiler is needed where natcore runs."""

from __future__ import annotations

import struct
import sys

# linux/bpf.h, linux/bpf_common.h
XDP_DROP, XDP_PASS = 1, 2
MAP_LOOKUP, KTIME_GET_NS, REDIRECT_MAP, KTIME_GET_COARSE_NS = 1, 5, 51, 160  # helpers
MAP_FD, MAP_VALUE = 1, 2  # what a map's number in an instruction stands for
_SIZES = {1: 0x10, 2: 0x08, 4: 0x00, 8: 0x18}
ALWAYS, EQUAL, GREATER, NOT_EQUAL = 0x05, 0x15, 0x2D, 0x55  # jumps; equal and not equal to a constant
SAME, DIFFERS = 0x1D, 0x5D  # two registers compared
LESS = 0xA5  # than a constant
NOT_POSITIVE = 0xD5  # at most a constant, signed
BELOW, AT_LEAST = 0xAD, 0x3D  # two registers, unsigned


class Assembler:
    """Instructions, and labels for forward jumps."""

    def __init__(self) -> None:
        self._code: list[tuple[int, int, int, int, str | int, int]] = []
        self._labels: dict[str, int] = {}

    def _add(self, code: int, to: int = 0, of: int = 0, offset: str | int = 0, value: int = 0) -> None:
        self._code.append((code, to, of, 0, offset, value))

    def label(self, name: str) -> None:
        assert name not in self._labels, name
        self._labels[name] = len(self._code)

    def load(self, size: int, to: int, of: int, offset: int) -> None:
        self._add(0x61 | _SIZES[size], to, of, offset)

    def store(self, size: int, to: int, offset: int, of: int) -> None:
        self._add(0x63 | _SIZES[size], to, of, offset)

    def count(self, to: int, offset: int, of: int, size: int = 8) -> None:
        """Add to 64 or 32 bits, atomically."""
        self._add(0xDB if size == 8 else 0xC3, to, of, offset)

    def copy(self, to: int, of: int) -> None:
        self._add(0xBF, to, of)

    def set(self, to: int, value: int) -> None:
        self._add(0xB7, to, value=value)

    def add(self, to: int, value: int) -> None:
        self._add(0x07, to, value=value)

    def add_register(self, to: int, of: int) -> None:
        self._add(0x0F, to, of)

    def subtract(self, to: int, of: int) -> None:
        self._add(0x1F, to, of)

    def multiply(self, to: int, of: int) -> None:
        self._add(0x2F, to, of)

    def toggle(self, to: int, value: int) -> None:
        """Exclusive or with a constant."""
        self._add(0xA7, to, value=value)

    def toggle_register(self, to: int, of: int) -> None:
        self._add(0xAF, to, of)

    def set_wide(self, to: int, value: int) -> None:
        """Set 64 bits."""
        self._add(0x18, to, value=_signed(value & 0xFFFFFFFF))
        self._add(0, value=_signed(value >> 32))

    def low_half(self, to: int) -> None:
        """Keep the low 32 bits."""
        self.shift_left(to, 32)
        self.shift_right(to, 32)

    def fold(self, to: int, spare: int, times: int) -> None:
        """Fold a ones' complement sum to 16 bits, so many times."""
        for _ in range(times):
            self.copy(spare, to)
            self.shift_right(spare, 16)
            self.mask(to, 0xFFFF)
            self.add_register(to, spare)

    def mask(self, to: int, value: int) -> None:
        self._add(0x57, to, value=value)

    def either(self, to: int, of: int) -> None:
        """Bitwise or of two registers."""
        self._add(0x4F, to, of)

    def shift_left(self, to: int, bits: int) -> None:
        self._add(0x67, to, value=bits)

    def shift_right(self, to: int, bits: int) -> None:
        self._add(0x77, to, value=bits)

    def shift_right_by(self, to: int, of: int) -> None:
        self._add(0x7F, to, of)

    def from_network(self, to: int, bits: int) -> None:
        """Convert a register from network byte order."""
        self._add(0xDC, to, value=bits)

    def map(self, to: int, fd: int, kind: int = MAP_FD) -> None:
        self._add(0x18, to, kind, value=fd)
        self._add(0)

    def jump(self, label: str, code: int = ALWAYS, one: int = 0, other: int = 0, value: int = 0) -> None:
        self._add(code, one, other, label, value)

    def call(self, helper: int) -> None:
        self._add(0x85, value=helper)

    def end(self) -> None:
        self._add(0x95)

    def code(self) -> bytes:
        parts = []
        for at, (code, to, of, _, offset, value) in enumerate(self._code):
            distance = self._labels[offset] - at - 1 if isinstance(offset, str) else offset
            parts.append(struct.pack("=BBhi", code, to | of << 4, distance, value))
        return b"".join(parts)


def word(wire: str) -> int:
    """Return the constant that a load of these bytes gives."""
    return int.from_bytes(bytes.fromhex(wire), sys.byteorder)


def _signed(value: int) -> int:
    return value - (1 << 32) if value >= 1 << 31 else value
