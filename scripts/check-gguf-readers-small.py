"""Writes the small file of tests/gguf_small.gguf with the Python `gguf` package: every metadata value
type, every array type, aligned to 64 bytes, tensors of several types. Usage: SCRIPT OUT.gguf"""

import sys

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Q
from gguf import GGUFValueType as T

out = sys.argv[1]
w = gguf.GGUFWriter(out, "test")
w.add_custom_alignment(64)
numbers = {
    "u8": (T.UINT8, 200, [0, 255]),
    "i8": (T.INT8, -100, [-128, 127]),
    "u16": (T.UINT16, 60000, [0, 65535]),
    "i16": (T.INT16, -30000, [-32768, 32767]),
    "u32": (T.UINT32, 4_000_000_000, [0, 2**32 - 1]),
    "i32": (T.INT32, -2_000_000_000, [-(2**31), 2**31 - 1]),
    "u64": (T.UINT64, 2**63 + 5, [0, 2**64 - 1]),
    "i64": (T.INT64, -(2**62), [-(2**63), 2**63 - 1]),
    "f32": (T.FLOAT32, 0.1, [1.5, -0.0]),
    "f64": (T.FLOAT64, 0.1, [1e300, -2.5]),
    "bool": (T.BOOL, True, [True, False, True]),
    "str": (T.STRING, "grüße", ["", "a", "日本"]),
}
for name, (ty, one, many) in numbers.items():
    w.add_key_value(f"test.{name}", one, ty)
    w.add_key_value(f"test.{name}s", many, T.ARRAY, sub_type=ty)

rng = np.random.default_rng(7)
w.add_tensor("token_embd.weight", rng.standard_normal((3, 32), dtype=np.float32))
w.add_tensor("scale", np.arange(5, dtype=np.float16))
w.add_tensor("counts", np.arange(6, dtype=np.int32).reshape(1, 2, 3))
bf16 = (rng.standard_normal((2, 2, 8), dtype=np.float32).view(np.uint32) >> 16).astype(np.uint16)
w.add_tensor("blk.0.ffn_up_exps.weight", bf16.view(np.uint8), raw_dtype=Q.BF16)
q8 = gguf.quants.quantize(rng.standard_normal((4, 64), dtype=np.float32), Q.Q8_0)
w.add_tensor("blk.0.attn_q.weight", q8, raw_dtype=Q.Q8_0)

w.write_header_to_file()
w.write_kv_data_to_file()
w.write_tensors_to_file()
w.close()
