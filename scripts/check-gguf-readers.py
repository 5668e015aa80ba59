"""Compares dumps of moqa's reader with the Python package `gguf`; called by check-gguf-readers."""

import json
import struct
import subprocess
import sys
import zlib

import numpy as np
from gguf import GGUFReader
from gguf import GGUFValueType as T

NAMES = {
    T.UINT8: "u8", T.INT8: "i8", T.UINT16: "u16", T.INT16: "i16", T.UINT32: "u32",
    T.INT32: "i32", T.FLOAT32: "f32", T.BOOL: "bool", T.STRING: "str", T.ARRAY: "arr",
    T.UINT64: "u64", T.INT64: "i64", T.FLOAT64: "f64",
}  # fmt: skip


def encode(name: str, value) -> bytes:
    """The bytes that the file holds for one dumped value: exact, floats and bad UTF-8 included."""
    if name == "str":
        return bytes.fromhex(value["hex"]) if isinstance(value, dict) else value.encode()
    if isinstance(value, dict):
        return struct.pack("<I" if name == "f32" else "<Q", value["bits"])
    if name == "bool":
        return bytes([value])
    return np.array([value], dtype=f"<{name[0]}{int(name[1:]) // 8}").tobytes()


def check_field(field, key: str, ours: dict) -> list[str]:
    types = [NAMES[t] for t in field.types]
    if ours["type"] != types[0]:
        return [f"{key}: type {ours['type']}, Python says {types[0]}"]
    value = ours["value"]
    if types[0] != "arr":
        ours_bytes = [encode(types[0], value)]
    else:
        # The package stores no element type for an empty array that is of use here.
        if len(types) > 1 and value["elem"] != types[-1]:
            return [f"{key}: elements {value['elem']}, Python says {types[-1]}"]
        elem = value["elem"]
        if elem == "arr":
            return [f"{key}: nested arrays are not compared"]
        ours_bytes = [encode(elem, v) for v in value["items"]]
    theirs_bytes = [field.parts[i].tobytes() for i in field.data]
    if ours_bytes != theirs_bytes:
        return [f"{key}: the values differ"]
    return []


def check(dump: str, path: str) -> list[str]:
    out = subprocess.run([dump, "--crc", path], check=True, stdout=subprocess.PIPE).stdout
    ours = json.loads(out)
    theirs = GGUFReader(path)
    fields = {k: f for k, f in theirs.fields.items() if not k.startswith("GGUF.")}
    problems = []

    def same(what, a, b):
        if a != b:
            problems.append(f"{what}: {a}, Python says {b}")

    same("version", ours["version"], int(theirs.fields["GGUF.version"].contents()))
    same("alignment", ours["alignment"], int(theirs.alignment))
    same("data offset", ours["data_offsets"], [int(theirs.data_offset)])
    same("key order", [m["key"] for m in ours["metadata"]], list(fields))
    for entry in ours["metadata"]:
        if entry["key"] in fields:
            problems += check_field(fields[entry["key"]], entry["key"], entry)

    same("tensor count", len(ours["tensors"]), len(theirs.tensors))
    for a, b in zip(ours["tensors"], theirs.tensors):
        same("tensor name", a["name"], b.name)
        name = a["name"]
        same(f"{name}: dims", a["dims"], [int(d) for d in b.shape])
        same(f"{name}: type", a["type_id"], int(b.tensor_type))
        same(f"{name}: type name", a["type"].upper(), b.tensor_type.name)
        same(f"{name}: elements", a["n_elems"], int(b.n_elements))
        same(f"{name}: bytes", a["n_bytes"], int(b.n_bytes))
        same(f"{name}: offset", a["file_offset"], int(b.data_offset))
        same(f"{name}: data", a["crc32"], zlib.crc32(np.ascontiguousarray(b.data).tobytes()))
    if not problems:
        print(f"{path}: {len(fields)} keys and {len(ours['tensors'])} tensors agree")
    return problems


def main() -> int:
    dump, *paths = sys.argv[1:]
    failed = False
    for path in paths:
        for problem in check(dump, path):
            failed = True
            print(f"{path}: {problem}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
