#!/usr/bin/env python3
"""Write src/tables/packed.rs: the codebooks of ggml's i-quants, packed.

The codebooks are constants of the file format. Every entry is a point of a small lattice, so an
entry of 8 coordinates with 3 levels takes 16 bits here (2 bits a coordinate, first coordinate
lowest), one of 4 coordinates with 8 levels takes 12 bits (3 bits a coordinate).

    scripts/codebooks.py path/to/ggml/src/ggml-common.h > src/tables/packed.rs
"""

import re
import sys

# name in ggml, name here, bytes per entry, levels in order
BOOKS = [
    ("iq2xxs_grid", "IQ2_XXS", 8, [8, 25, 43]),
    ("iq2xs_grid", "IQ2_XS", 8, [8, 25, 43]),
    ("iq2s_grid", "IQ2_S", 8, [8, 25, 43]),
    ("iq3xxs_grid", "IQ3_XXS", 4, [4, 12, 20, 28, 36, 44, 52, 62]),
    ("iq3s_grid", "IQ3_S", 4, [1, 3, 5, 7, 9, 11, 13, 15]),
    ("iq1s_grid", "IQ1", 8, [255, 0, 1]),
]


def main():
    source = open(sys.argv[1], encoding="utf-8").read()
    print("//! Codebooks of the i-quants, packed: constants of the file format.")
    print("//! Written by scripts/codebooks.py, which says how they are packed.")
    for theirs, ours, size, levels in BOOKS:
        body = re.search(r"GGML_TABLE_BEGIN\(\w+, %s, \w+\)(.*?)GGML_TABLE_END" % theirs, source, re.S)
        entries = [int(x, 16) for x in re.findall(r"0x[0-9a-fA-F]+", body.group(1))]
        bits = 2 if len(levels) == 3 else 3
        packed = []
        for entry in entries:
            code = 0
            for j in range(size):
                code |= levels.index((entry >> (8 * j)) & 255) << (bits * j)
            packed.append(code)
        print("\n#[rustfmt::skip]")
        print(f"pub(super) const {ours}: [u16; {len(packed)}] = [")
        for i in range(0, len(packed), 16):
            print("    " + " ".join("0x%04x," % c for c in packed[i : i + 16]))
        print("];")


main()
