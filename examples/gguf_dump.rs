//! Prints what the reader sees in a GGUF file as JSON: `gguf_dump [--crc] FILE`.
//!
//! Strings that are not UTF-8 come as `{"hex": …}`, floats that JSON cannot hold as
//! `{"bits": …}`; with `--crc`, every tensor gets the CRC-32 of its data.

use anyhow::{Context, bail};
use moqa::gguf::{Array, Gguf, Value};
use serde_json::{Value as Json, json};

fn string(bytes: &[u8]) -> Json {
    match std::str::from_utf8(bytes) {
        Ok(text) => json!(text),
        Err(_) => {
            let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
            json!({ "hex": hex })
        }
    }
}

fn array(array: &Array) -> Json {
    let items: Vec<Json> = match array {
        Array::Str(strings) => strings.iter().map(string).collect(),
        _ => (0..array.len())
            .filter_map(|i| array.get(i))
            .map(|v| value(&v))
            .collect(),
    };
    json!({ "elem": array.elem_type().name(), "items": items })
}

fn value(v: &Value) -> Json {
    match v {
        Value::U8(v) => json!(v),
        Value::I8(v) => json!(v),
        Value::U16(v) => json!(v),
        Value::I16(v) => json!(v),
        Value::U32(v) => json!(v),
        Value::I32(v) => json!(v),
        Value::F32(v) if v.is_finite() => json!(f64::from(*v)),
        Value::F32(v) => json!({ "bits": v.to_bits() }),
        Value::Bool(v) => json!(v),
        Value::Str(s) => string(s.as_bytes()),
        Value::Array(a) => array(a),
        Value::U64(v) => json!(v),
        Value::I64(v) => json!(v),
        Value::F64(v) if v.is_finite() => json!(v),
        Value::F64(v) => json!({ "bits": v.to_bits() }),
    }
}

/// CRC-32 as zlib computes it.
fn crc32(bytes: &[u8]) -> u32 {
    let table: Vec<u32> = (0..256u32)
        .map(|i| (0..8).fold(i, |c, _| (c >> 1) ^ (0xedb8_8320 & (c & 1).wrapping_neg())))
        .collect();
    !bytes.iter().fold(!0, |c, &b| {
        (c >> 8) ^ table[((c ^ u32::from(b)) & 0xff) as usize]
    })
}

fn main() -> anyhow::Result<()> {
    let mut args: Vec<_> = std::env::args_os().skip(1).collect();
    let with_crc = args.first().is_some_and(|a| a == "--crc");
    if with_crc {
        args.remove(0);
    }
    let [path] = &args[..] else {
        bail!("usage: gguf_dump [--crc] FILE");
    };
    let gguf = Gguf::open(path)?;

    let metadata: Vec<_> = (gguf.metadata.iter())
        .map(|(k, v)| json!({ "key": k, "type": v.value_type().name(), "value": value(v) }))
        .collect();
    let tensors: Vec<_> = (gguf.tensors.iter())
        .map(|t| {
            let mut entry = json!({
                "name": t.name,
                "dims": &t.dims[..],
                "type": t.ty.name(),
                "type_id": t.ty.id(),
                "part": t.part,
                "file_offset": t.file_offset,
                "n_elems": t.n_elems(),
                "n_bytes": t.n_bytes(),
            });
            if with_crc {
                entry["crc32"] = json!(crc32(gguf.data(t)));
            }
            entry
        })
        .collect();
    let dump = json!({
        "version": gguf.version,
        "alignment": gguf.alignment,
        "paths": gguf.paths().iter().map(|p| p.display().to_string()).collect::<Vec<_>>(),
        "data_offsets": gguf.parts.iter().map(|p| p.data_offset).collect::<Vec<_>>(),
        "metadata": metadata,
        "tensors": tensors,
    });
    serde_json::to_writer(std::io::stdout().lock(), &dump).context("writing the dump")
}
