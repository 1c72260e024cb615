"""A frame's number, drawn into its picture, for measurements only (`serve --stamp`).

Two rows of 16 grey blocks at the top edge, each a sixteenth of the picture wide and half
as high: a dark and a bright one for reference, 22 bits of the frame number in Gray code
(neighbouring frames differ in one block, so a starved encoder has little to change), and
the eight bits of a CRC over the number. A picture whose blocks are not clearly dark or
bright, or whose CRC differs, holds no stamp: a wrong number would be worse than none.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]

COLUMNS, ROWS = 16, 2
NUMBER_BITS, CRC_BITS = 22, 8
#: BT.601 limited luma, and neutral chroma.
DARK, BRIGHT, NEUTRAL = 32, 216, 128
#: A block must be this much of the way from the middle grey to a reference.
_CLEAR = 0.4
_CRC_POLYNOMIAL = 0x07


def stamp(i420: Pixels, number: int) -> None:
    """Draw `number` (its lowest 22 bits) into (H * 3 / 2, W) uint8 I420, in place."""
    rows, width = i420.shape
    height = rows * 2 // 3
    block_w, block_h = _block(width)
    levels = np.array([DARK, BRIGHT, *np.where(_bits(number), BRIGHT, DARK)], np.uint8)
    for row, line in enumerate(levels.reshape(ROWS, COLUMNS)):
        top = row * block_h
        i420[top : top + block_h, : COLUMNS * block_w] = np.repeat(line, block_w)
    # Both chroma planes follow the luma, each line of theirs half as wide.
    chroma_lines = ROWS * block_h // 2
    chroma = i420[height:].reshape(2, height // 2, width // 2)
    chroma[:, :chroma_lines, : COLUMNS * block_w // 2] = NEUTRAL


def read_stamp(luma: Pixels) -> int | None:
    """Number in the luma plane (H, W) uint8 of a decoded picture; None when there is none."""
    block_w, block_h = _block(luma.shape[1])
    if block_h < 4 or luma.shape[0] < ROWS * block_h:
        return None
    area = luma[: ROWS * block_h, : COLUMNS * block_w].astype(np.float32)
    blocks = area.reshape(ROWS, block_h, COLUMNS, block_w)
    edge_h, edge_w = block_h // 4, block_w // 4
    core = blocks[:, edge_h : block_h - edge_h, :, edge_w : block_w - edge_w]
    levels = core.mean((1, 3)).reshape(-1)
    dark, bright = float(levels[0]), float(levels[1])
    if bright - dark < (BRIGHT - DARK) / 3:
        return None
    signs = (levels[2:] - (dark + bright) / 2) / ((bright - dark) / 2)
    if float(np.abs(signs).min()) < _CLEAR:
        return None
    bits = signs > 0
    gray = int("".join("1" if bit else "0" for bit in bits[:NUMBER_BITS]), 2)
    number = gray
    while gray := gray >> 1:
        number ^= gray
    return number if np.array_equal(_bits(number), bits) else None


def _block(width: int) -> tuple[int, int]:
    """Width and height of one block; the height is even, as chroma needs it."""
    block_w = width // COLUMNS
    return block_w, max(2, block_w // 2 // 2 * 2)


def _bits(number: int) -> NDArray[np.bool_]:
    """Gray-coded number, then its CRC, most significant bits first."""
    number &= (1 << NUMBER_BITS) - 1
    word = (number ^ (number >> 1)) << CRC_BITS | _crc8(number)
    total = NUMBER_BITS + CRC_BITS
    return np.array([word >> (total - 1 - k) & 1 for k in range(total)], np.bool_)


def _crc8(number: int) -> int:
    """CRC-8 (polynomial x^8 + x^2 + x + 1) over three bytes; never 0 for number 0."""
    crc = 0xFF
    for byte in number.to_bytes(3, "big"):
        crc ^= byte
        for _ in range(8):
            crc = (crc << 1 ^ _CRC_POLYNOMIAL) & 0xFF if crc & 0x80 else crc << 1
    return crc
