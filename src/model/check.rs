//! What llama.cpp takes for granted about a model: where it does not hold, llama.cpp stops the process instead
//! of refusing the file. The rules are the assertions of `src/llama-model.cpp` (load_hparams) and
//! `src/llama-vocab.cpp`, llama.cpp of October 2026. Shapes, and types of keys, it checks itself.

use std::collections::HashSet;

use anyhow::{Context, Result, ensure};

use crate::gguf::{GgmlType, Gguf, Value};

/// LLAMA_MAX_LAYERS.
const MAX_LAYERS: u64 = 512;
/// LLAMA_MAX_EXPERTS.
const MAX_EXPERTS: u64 = 1024;
const ADVICE: &str = "the file is damaged or badly converted, convert or download it again";
const ROPE_SCALINGS: [&str; 4] = ["none", "linear", "yarn", "longrope"];
/// Widths of one head's keys or values; those of sliding windows and of latent attention apart.
const HEAD_WIDTHS: [&str; 6] = [
    "attention.key_length",
    "attention.value_length",
    "attention.key_length_swa",
    "attention.value_length_swa",
    "attention.key_length_mla",
    "attention.value_length_mla",
];
/// How much wider than any tensor of a layer all heads together may seem.
const HEADS_SLACK: u64 = 4;
const EPSILONS: [&str; 3] = [
    "attention.layer_norm_rms_epsilon",
    "attention.layer_norm_epsilon",
    "attention.group_norm_epsilon",
];

/// Checks that a model can be given to llama.cpp.
///
/// # Errors
/// Names the key or tensor that llama.cpp would stumble over, and leaves the file's name to the caller.
pub fn check_runnable(gguf: &Gguf) -> Result<()> {
    crate::mixed::refuse(gguf)?;
    let arch = gguf
        .metadata
        .get_str("general.architecture")
        .context("key general.architecture is missing: this is not a model; give a GGUF model")?;
    let keys = Keys { gguf, arch };
    check_layers(&keys)?;
    check_experts(&keys)?;
    check_numbers(&keys)?;
    check_heads(&keys)?;
    check_vocabulary(gguf)?;
    check_types(gguf)
}

struct Keys<'a> {
    gguf: &'a Gguf,
    arch: &'a str,
}

impl Keys<'_> {
    fn get(&self, key: &str) -> Option<&Value> {
        self.gguf.metadata.get(&format!("{}.{key}", self.arch))
    }

    /// A count; of one that differs by layer the largest; 0 when missing.
    fn count(&self, key: &str) -> Result<u64> {
        let n = match self.get(key) {
            None => Some(0),
            Some(Value::Array(array)) => array
                .to_u64s()
                .map(|v| v.into_iter().max().unwrap_or_default()),
            Some(value) => value.as_u64(),
        };
        n.with_context(|| format!("key {}.{key} is not a count; {ADVICE}", self.arch))
    }

    fn ensure(&self, holds: bool, key: &str, problem: impl FnOnce() -> String) -> Result<()> {
        ensure!(holds, "key {}.{key} {}; {ADVICE}", self.arch, problem());
        Ok(())
    }
}

fn check_layers(keys: &Keys) -> Result<()> {
    let layers = keys.count("block_count")?;
    keys.ensure((1..=MAX_LAYERS).contains(&layers), "block_count", || {
        format!("is {layers} or missing; llama.cpp runs 1 to {MAX_LAYERS} layers")
    })?;
    let next = keys.count("nextn_predict_layers")?;
    keys.ensure(next <= layers, "nextn_predict_layers", || {
        format!("is {next} of {layers} layers")
    })
}

fn check_experts(keys: &Keys) -> Result<()> {
    let experts = keys.count("expert_count")?;
    let used = keys.count("expert_used_count")?;
    let groups = keys.count("expert_group_count")?;
    let groups_used = keys.count("expert_group_used_count")?;
    keys.ensure(experts <= MAX_EXPERTS, "expert_count", || {
        format!("is {experts}; llama.cpp runs at most {MAX_EXPERTS} experts")
    })?;
    keys.ensure(used <= experts, "expert_used_count", || {
        format!("is {used} of {experts} experts")
    })?;
    keys.ensure(used > 0 || experts == 0, "expert_used_count", || {
        format!("is 0 or missing in a model of {experts} experts")
    })?;
    let grouped = if experts == 0 {
        groups == 0
    } else {
        groups < experts
    };
    keys.ensure(grouped, "expert_group_count", || {
        format!("is {groups} in a model of {experts} experts")
    })?;
    if groups > 1 {
        keys.ensure(experts.is_multiple_of(groups), "expert_group_count", || {
            format!("is {groups}, which does not divide {experts} experts")
        })?;
        let sensible = (1..groups).contains(&groups_used);
        keys.ensure(sensible, "expert_group_used_count", || {
            format!("is {groups_used} of {groups} groups")
        })?;
    }
    Ok(())
}

fn check_numbers(keys: &Keys) -> Result<()> {
    for key in EPSILONS {
        if let Some(v) = keys.get(key).and_then(Value::as_f64) {
            keys.ensure(v.is_finite() && v >= 0.0, key, || {
                format!("is {v}, not a small positive number")
            })?;
        }
    }
    if let Some(kind) = keys.get("rope.scaling.type").and_then(Value::as_str) {
        keys.ensure(ROPE_SCALINGS.contains(&kind), "rope.scaling.type", || {
            format!("is {kind:?}, none of {}", ROPE_SCALINGS.join(", "))
        })?;
    }
    Ok(())
}

/// llama.cpp does not compare the widths of attention heads with the tensors in every architecture, and
/// allocates its cache by them. Architectures differ too much for an equation, so this is a bound.
fn check_heads(keys: &Keys) -> Result<()> {
    let width = keys
        .gguf
        .tensors
        .iter()
        .filter(|t| t.name.starts_with("blk."))
        .map(|t| {
            let matrices = if t.name.contains("_exps.") {
                1
            } else {
                t.ne(2)
            };
            t.ne(0).max(t.ne(1).saturating_mul(matrices))
        })
        .max()
        .unwrap_or_default();
    let most = width.saturating_mul(HEADS_SLACK);
    let heads = keys.count("attention.head_count_kv")?.max(1);
    for key in HEAD_WIDTHS {
        let n = keys.count(key)?;
        keys.ensure(n.saturating_mul(heads) <= most, key, || {
            format!("is {n} in {heads} heads, but no tensor of a layer is wider than {width}")
        })?;
    }
    Ok(())
}

/// llama.cpp wants every token to differ from the others; an empty one gets a name from its number.
fn check_vocabulary(gguf: &Gguf) -> Result<()> {
    const KEY: &str = "tokenizer.ggml.tokens";
    let Some(tokens) = gguf.metadata.get_array(KEY).and_then(|a| a.as_strings()) else {
        return Ok(());
    };
    let mut seen = HashSet::with_capacity(tokens.len());
    for (i, token) in tokens.iter().enumerate() {
        ensure!(
            token.is_empty() || seen.insert(token),
            "key {KEY}: token {i} is the same as an earlier one, \"{}\"; {ADVICE}",
            token[..token.len().min(64)].escape_ascii()
        );
    }
    for (i, _) in tokens.iter().enumerate().filter(|(_, t)| t.is_empty()) {
        ensure!(
            !seen.contains(format!("[EMPTY_{i}]").as_bytes()),
            "key {KEY}: the empty token {i} has the same name as another, [EMPTY_{i}]; {ADVICE}"
        );
    }
    Ok(())
}

/// Matrices of numbers that llama.cpp cannot multiply by.
fn check_types(gguf: &Gguf) -> Result<()> {
    for t in &gguf.tensors {
        let impossible = match t.ty {
            GgmlType::I8 | GgmlType::I16 | GgmlType::I64 | GgmlType::F64 => true,
            // Tables of expert numbers.
            GgmlType::I32 => t.ne(1) > 1 && !t.name.contains("tid2eid"),
            ty => !crate::ggml::can_decode(ty),
        };
        ensure!(
            !(impossible && t.name.ends_with(".weight")),
            "tensor {} (offset {}) is of type {}, in which llama.cpp has no weights; {ADVICE}",
            t.name,
            t.file_offset,
            t.ty
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::{Array, GStringArray, GgufLayout, GgufWriter, Metadata, Shape, TensorSpec};

    fn metadata() -> Metadata {
        let mut m = Metadata::new();
        m.set("general.architecture", "qwen3moe");
        m.set("qwen3moe.block_count", 2u32);
        m.set("qwen3moe.expert_count", 4u32);
        m.set("qwen3moe.expert_used_count", 2u32);
        m.set("qwen3moe.attention.layer_norm_rms_epsilon", 1e-6f32);
        m
    }

    fn problem(m: &Metadata, ty: GgmlType) -> String {
        let spec = TensorSpec {
            name: "blk.0.attn_q.weight".into(),
            dims: Shape::new(&[32, 2]).unwrap(),
            ty,
        };
        let n_bytes = spec.dims.n_bytes(ty).unwrap();
        let layout = GgufLayout::new(m, vec![spec], 3).unwrap();
        let mut writer = GgufWriter::new(Vec::new(), &layout).unwrap();
        writer
            .write_tensor("blk.0.attn_q.weight", &vec![0; n_bytes as usize])
            .unwrap();
        let gguf = Gguf::from_bytes("x.gguf", writer.finish().unwrap()).unwrap();
        check_runnable(&gguf).map_or_else(|e| e.to_string(), |()| String::new())
    }

    fn tokens(list: &[&str]) -> Array {
        let mut strings = GStringArray::new();
        list.iter().for_each(|t| strings.push(t.as_bytes()));
        Array::Str(strings)
    }

    #[test]
    fn what_llama_cpp_stops_over_is_refused() {
        assert_eq!(problem(&metadata(), GgmlType::BF16), "");
        let refused = |key: &str, value: Value| {
            let mut m = metadata();
            m.set(key, value);
            let text = problem(&m, GgmlType::BF16);
            assert!(
                text.contains(key) && text.contains("; the file is"),
                "{key}: {text:?}"
            );
        };
        for n in [0, 513, u32::MAX] {
            refused("qwen3moe.block_count", Value::U32(n));
        }
        refused("qwen3moe.block_count", Value::Str("two".into()));
        refused("qwen3moe.nextn_predict_layers", Value::U32(3));
        refused("qwen3moe.expert_used_count", Value::U32(5));
        refused("qwen3moe.expert_used_count", Value::U32(0));
        refused("qwen3moe.expert_count", Value::U32(1025));
        refused("qwen3moe.expert_group_count", Value::U32(4));
        refused("qwen3moe.expert_group_count", Value::U32(3));
        let mut grouped = metadata();
        grouped.set("qwen3moe.expert_group_count", 2u32);
        assert!(problem(&grouped, GgmlType::F32).contains("expert_group_used_count"));
        grouped.set("qwen3moe.expert_group_used_count", 1u32);
        assert_eq!(problem(&grouped, GgmlType::F32), "");
        for v in [-1.0, f32::NAN, f32::INFINITY] {
            refused("qwen3moe.attention.layer_norm_rms_epsilon", Value::F32(v));
        }
        refused("qwen3moe.attention.value_length", Value::U32(129));
        let mut heads = metadata();
        heads.set("qwen3moe.attention.key_length", 32u32);
        heads.set("qwen3moe.attention.head_count_kv", 4u32);
        assert_eq!(problem(&heads, GgmlType::F32), "");
        heads.set("qwen3moe.attention.head_count_kv", 5u32);
        assert!(problem(&heads, GgmlType::F32).contains("in 5 heads"));
        refused("qwen3moe.rope.scaling.type", Value::Str("spiral".into()));
        for list in [&["a", "b", "a"][..], &["[EMPTY_1]", ""]] {
            refused("tokenizer.ggml.tokens", Value::Array(tokens(list)));
        }
        let mut m = metadata();
        m.set(
            "tokenizer.ggml.tokens",
            Value::Array(tokens(&["a", "", ""])),
        );
        assert_eq!(problem(&m, GgmlType::Q4_0), "");
        for ty in [GgmlType::I8, GgmlType::I16, GgmlType::I32, GgmlType::F64] {
            assert!(problem(&metadata(), ty).contains("blk.0.attn_q.weight"));
        }
    }
}
