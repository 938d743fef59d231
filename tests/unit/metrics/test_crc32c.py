"""CRC-32C against published check values and a byte-by-byte reference."""

import numpy as np
import pytest

from hpdm_core.metrics.crc32c import crc32c


def reference(data: bytes) -> int:
    register = 0xFFFFFFFF
    for byte in data:
        register ^= byte
        for _ in range(8):
            register = (register >> 1) ^ (0x82F63B78 if register & 1 else 0)
    return register ^ 0xFFFFFFFF


@pytest.mark.parametrize(
    ("data", "expected"),
    [(b"", 0), (b"a", 0xC1D04330), (b"123456789", 0xE3069283), (bytes(32), 0x8A9136AA), (b"\xff" * 32, 0x62A8AB43)],
)
def test_published_values(data, expected):
    assert crc32c(data) == expected


@pytest.mark.parametrize("size", [1, 3, 4, 5, 255, 256, 511, 512, 513, 1024, 4099, 20000])
def test_every_lane_split_agrees_with_the_byte_loop(size):
    data = np.random.default_rng(size).integers(0, 256, size, dtype=np.uint8)
    assert crc32c(data) == reference(data.tobytes())


def test_arrays_of_floats_are_taken_as_their_bytes():
    values = np.arange(300, dtype="<f4").reshape(20, 15).T
    assert crc32c(values) == reference(np.ascontiguousarray(values).tobytes())
