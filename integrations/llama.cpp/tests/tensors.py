"""Reads safetensors with Python's standard library alone."""

import array
import json
import struct

KINDS = {"F32": "f", "I32": "i", "U32": "I", "I64": "q", "U8": "B"}


def read(path):
    """(metadata, {name: (shape, flat array)}) of a file; tensors of other kinds are left out."""
    with open(path, "rb") as file:
        data = file.read()
    (size,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + size])
    tensors = {}
    for name, t in header.items():
        if name == "__metadata__" or t["dtype"] not in KINDS:
            continue
        begin, end = (8 + size + offset for offset in t["data_offsets"])
        tensors[name] = (t["shape"], array.array(KINDS[t["dtype"]], data[begin:end]))
    return header.get("__metadata__", {}), tensors
