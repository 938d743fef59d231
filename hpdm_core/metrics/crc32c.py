"""CRC-32C (Castagnoli), vectorised: TensorFlow checkpoints carry one per tensor, so weights can be recognised.

The checksum is linear over bits. The bytes are cut into equal lanes that step through the byte table
side by side; neighbouring lanes are then merged in pairs, shifting the left one past the right one's bytes.
"""

from __future__ import annotations

from functools import cache

import numpy as np

_POLYNOMIAL = 0x82F63B78
_BYTES_PER_LANE = 256


@cache
def _byte_table() -> np.ndarray:
    """uint32 [256]: the register after one byte."""
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, (table >> 1) ^ np.uint32(_POLYNOMIAL), table >> 1)
    return table


def _step(register: np.ndarray, byte: np.ndarray | int) -> np.ndarray:
    return _byte_table()[(register ^ byte) & 0xFF] ^ (register >> 8)


def _apply(operator: np.ndarray, registers: np.ndarray) -> np.ndarray:
    """A linear map of registers; `operator[i]` is the image of bit i."""
    result = np.zeros_like(registers)
    for bit in range(32):
        result ^= np.where((registers >> np.uint32(bit)) & 1, operator[bit], np.uint32(0))
    return result


def _skip_zero_bytes(count: int) -> np.ndarray:
    """The map that `count` zero bytes apply to a register, by repeated squaring."""
    result = np.uint32(1) << np.arange(32, dtype=np.uint32)
    power = _step(result, 0)
    while count:
        if count & 1:
            result = _apply(power, result)
        power = _apply(power, power)
        count >>= 1
    return result


def crc32c(data: bytes | bytearray | memoryview | np.ndarray) -> int:
    """CRC-32C of the raw bytes of `data`: crc32c(b"123456789") == 0xE3069283."""
    raw = np.frombuffer(data.tobytes() if isinstance(data, np.ndarray) else data, dtype=np.uint8)
    if raw.size < 4:
        register = np.array([0xFFFFFFFF], dtype=np.uint32)
        for byte in raw:
            register = _step(register, byte)
        return int(register[0]) ^ 0xFFFFFFFF
    lanes = 1 << max(0, (raw.size // _BYTES_PER_LANE).bit_length() - 1)
    width = -(-raw.size // lanes)
    # Zeros in front leave an all-zero register alone; flipping the first four bytes is the initial value.
    padded = np.zeros(lanes * width, dtype=np.uint8)
    padded[-raw.size :] = raw
    first = padded.size - raw.size
    padded[first : first + 4] ^= 0xFF
    registers = np.zeros(lanes, dtype=np.uint32)
    for column in np.ascontiguousarray(padded.reshape(lanes, width).T):
        registers = _step(registers, column)
    shift = _skip_zero_bytes(width)
    while registers.size > 1:
        registers = _apply(shift, registers[0::2]) ^ registers[1::2]
        shift = _apply(shift, shift)
    return int(registers[0]) ^ 0xFFFFFFFF
