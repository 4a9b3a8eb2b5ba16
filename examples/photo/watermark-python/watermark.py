"""Marks a raw picture in its lower right corner, as the native `watermark` does, to the byte. Standard library only.

The picture comes in as a memoryview of the memory where the step before has written it. It is copied once, because
nobody may change what another function has made; all changes are to stretches of rows, never pixel by pixel.
"""

import struct
from pathlib import Path

import spry

HEADER = struct.Struct("<4sIII")
MARK = Path(__file__).with_name("mark.txt").read_text().splitlines()
# What becomes of a byte, for each of its 256 values.
CHANGES = {
    "#": bytes(255 - (255 - value) // 3 for value in range(256)),
    ":": bytes(value // 2 for value in range(256)),
}


def main(request: spry.Request):
    picture = request.body
    if len(picture) < HEADER.size:
        raise ValueError("this is no raw picture: the step before should answer one")
    magic, width, height, _ = HEADER.unpack_from(picture)
    if magic != b"RGB8" or len(picture) != HEADER.size + 3 * width * height:
        raise ValueError("this is no raw picture: the step before should answer one")
    across, down = len(MARK[0]), len(MARK)
    side = width // (4 * across)
    if side == 0 or (down + 2) * side > height:
        return picture

    marked = bytearray(picture)
    # Two squares away from the edges.
    left, top = width - (across + 2) * side, height - (down + 2) * side
    for line, squares in enumerate(MARK):
        for row in range(top + line * side, top + (line + 1) * side):
            start = HEADER.size + 3 * (row * width + left)
            for column, square in enumerate(squares):
                if square in CHANGES:
                    at = start + 3 * column * side
                    marked[at:at + 3 * side] = marked[at:at + 3 * side].translate(CHANGES[square])
    return marked
