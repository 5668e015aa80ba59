//! A digest that tells one model from another.

use crate::gguf::{Array, Gguf, GgufError, Value};

/// How much of each end of a tensor's data is covered, in bytes.
const SAMPLE: u64 = 64 << 10;

/// `blake3:` and 64 hexadecimal digits that stand for the model's identity. Covered are
///
/// * the keys that define the model, with their types and values: `general.architecture`, those that begin
///   with the architecture's name, and `tokenizer.*` but the chat templates, which are edited without
///   changing the model;
/// * name, shape and type of every tensor;
/// * the first and the last 64 KiB of every tensor's data (all of it up to 128 KiB).
///
/// Names, licences and other descriptions are not covered, nor the order of keys and tensors, the alignment,
/// or how the model is split into files. A change in the middle of a large tensor goes unnoticed: that is the
/// price of not reading the whole model.
///
/// # Errors
/// The data of a model that is made on demand cannot be made.
pub fn digest(gguf: &Gguf) -> Result<String, GgufError> {
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"moqa model digest 1\0");

    let arch = gguf.metadata.get_str("general.architecture").unwrap_or("");
    let arch_prefix = format!("{}.", crate::mixed::base_architecture(arch));
    let mut keys: Vec<(&str, &Value)> = gguf
        .metadata
        .iter()
        .filter(|(key, _)| {
            *key == "general.architecture"
                || (!arch.is_empty() && key.starts_with(&arch_prefix))
                || (key.starts_with("tokenizer.") && !key.starts_with("tokenizer.chat_template"))
        })
        .collect();
    keys.sort_unstable_by_key(|(key, _)| *key);
    number(&mut hasher, keys.len() as u64);
    for (key, value) in keys {
        text(&mut hasher, key.as_bytes());
        hash_value(&mut hasher, value);
    }

    let mut tensors: Vec<_> = gguf.tensors.iter().collect();
    tensors.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    number(&mut hasher, tensors.len() as u64);
    for tensor in tensors {
        text(&mut hasher, tensor.name.as_bytes());
        for i in 0..crate::gguf::MAX_DIMS {
            number(&mut hasher, tensor.ne(i));
        }
        number(&mut hasher, tensor.ty.id().into());
        let n = tensor.n_bytes();
        if n <= 2 * SAMPLE {
            hasher.update(&gguf.bytes(tensor, 0..n)?);
        } else {
            hasher.update(&gguf.bytes(tensor, 0..SAMPLE)?);
            hasher.update(&gguf.bytes(tensor, n - SAMPLE..n)?);
        }
    }
    Ok(format!("blake3:{}", hasher.finalize().to_hex()))
}

fn number(hasher: &mut blake3::Hasher, n: u64) {
    hasher.update(&n.to_le_bytes());
}

/// Length first, so that no two sequences of texts look alike.
fn text(hasher: &mut blake3::Hasher, bytes: &[u8]) {
    number(hasher, bytes.len() as u64);
    hasher.update(bytes);
}

fn hash_value(hasher: &mut blake3::Hasher, value: &Value) {
    number(hasher, value.value_type().id().into());
    match value {
        Value::U8(v) => number(hasher, (*v).into()),
        Value::U16(v) => number(hasher, (*v).into()),
        Value::U32(v) => number(hasher, (*v).into()),
        Value::U64(v) => number(hasher, *v),
        Value::I8(v) => number(hasher, *v as u64),
        Value::I16(v) => number(hasher, *v as u64),
        Value::I32(v) => number(hasher, *v as u64),
        Value::I64(v) => number(hasher, *v as u64),
        Value::Bool(v) => number(hasher, (*v).into()),
        Value::F32(v) => number(hasher, v.to_bits().into()),
        Value::F64(v) => number(hasher, v.to_bits()),
        Value::Str(s) => text(hasher, s.as_bytes()),
        Value::Array(array) => hash_array(hasher, array),
    }
}

fn hash_array(hasher: &mut blake3::Hasher, array: &Array) {
    number(hasher, array.elem_type().id().into());
    number(hasher, array.len() as u64);
    match array {
        // Vocabularies are long: no allocation for each token.
        Array::Str(strings) => strings.iter().for_each(|s| text(hasher, s)),
        Array::Array(arrays) => arrays.iter().for_each(|a| hash_array(hasher, a)),
        _ => (0..array.len())
            .filter_map(|i| array.get(i))
            .for_each(|v| hash_value(hasher, &v)),
    }
}
