//! Well-formed files whose metadata contradict themselves or the tensors: what llama.cpp makes of them.

use std::fs;
use std::path::Path;

use moqa::gguf::{
    Array, GString, GStringArray, GgmlType, Gguf, GgufLayout, GgufWriter, Metadata, Value,
};

use super::watch::{Random, TINY};
use super::{attempt, commands, on_all_cores, place, refused};

/// The tiny model with other metadata.
fn with_metadata(change: impl FnOnce(&mut Metadata)) -> Vec<u8> {
    rewrite(Path::new(TINY), |m, _| change(m))
}

/// A model with other metadata or tensor types (of the same size).
fn rewrite(
    model: &Path,
    change: impl FnOnce(&mut Metadata, &mut Vec<(String, GgmlType)>),
) -> Vec<u8> {
    let source = Gguf::open(model).unwrap();
    let mut metadata = source.metadata.clone();
    let mut types = Vec::new();
    change(&mut metadata, &mut types);
    let specs = source
        .tensors
        .iter()
        .map(|t| {
            let mut spec = t.spec();
            if let Some((_, ty)) = types.iter().find(|(name, _)| *name == t.name) {
                spec.ty = *ty;
            }
            spec
        })
        .collect();
    let layout = GgufLayout::new(&metadata, specs, 3).unwrap();
    let mut writer = GgufWriter::new(Vec::new(), &layout).unwrap();
    for t in &source.tensors {
        writer.write_tensor(&t.name, source.data(t)).unwrap();
    }
    writer.finish().unwrap()
}

/// Values that a key may hostilely have instead of `value`.
fn hostile_values(value: &Value, random: &mut Random) -> Value {
    const NUMBERS: [u32; 16] = [
        0,
        1,
        2,
        3,
        5,
        7,
        33,
        64,
        1000,
        4096,
        65_535,
        1_000_000,
        0x7fff_ffff,
        0x8000_0000,
        0xffff_fffe,
        u32::MAX,
    ];
    const FLOATS: [f32; 7] = [
        0.0,
        -1.0,
        f32::NAN,
        f32::INFINITY,
        f32::NEG_INFINITY,
        1e30,
        1e-45,
    ];
    const TEXTS: [&str; 12] = [
        "",
        "x",
        "llama",
        "gpt2",
        "bert",
        "t5",
        "rwkv",
        "no_vocab",
        "yarn",
        "deepseek2",
        "%s%n",
        "qwen2moe",
    ];
    match value {
        Value::U32(_) => Value::U32(NUMBERS[random.below(NUMBERS.len())]),
        Value::F32(_) => Value::F32(FLOATS[random.below(FLOATS.len())]),
        Value::Bool(b) => Value::Bool(!b),
        Value::Array(Array::Str(strings)) => {
            let mut list: Vec<&[u8]> = strings.iter().collect();
            match random.below(5) {
                0 => list.clear(),
                1 => list.truncate(random.below(list.len() + 1)),
                2 => list.extend_from_within(..random.below(list.len() + 1)),
                3 if !list.is_empty() => {
                    let i = random.below(list.len());
                    list[i] = b"\xff\xfe";
                }
                _ => list.reverse(),
            }
            Value::Array(Array::Str(list.into_iter().collect::<GStringArray>()))
        }
        Value::Array(Array::I32(list)) => {
            let mut list = list.clone();
            match random.below(3) {
                0 => list.clear(),
                1 => list.truncate(random.below(list.len() + 1)),
                _ => list
                    .iter_mut()
                    .for_each(|v| *v = NUMBERS[random.below(NUMBERS.len())] as i32),
            }
            Value::Array(Array::I32(list))
        }
        _ => Value::Str(GString::from(TEXTS[random.below(TEXTS.len())])),
    }
}

/// Keys that the model does not have and some code of llama.cpp reads.
const EXTRA: [&str; 24] = [
    "expert_group_count",
    "expert_group_used_count",
    "expert_gating_func",
    "expert_weights_scale",
    "expert_shared_count",
    "leading_dense_block_count",
    "nextn_predict_layers",
    "rope.dimension_count",
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scaling.original_context_length",
    "attention.sliding_window",
    "attention.key_length_mla",
    "attention.value_length_mla",
    "attention.kv_lora_rank",
    "attention.causal",
    "pooling_type",
    "vocab_size",
    "embedding_length_out",
    "n_deepstack_layers",
    "attention.scale",
    "logit_scale",
    "ssm.state_size",
    "decoder_start_token_id",
];

/// Metadata that contradicts itself or the tensors, in every model that llama.cpp can load.
fn inconsistent_metadata(model: &Path, n: usize, seed: u64) {
    let source = Gguf::open(model).unwrap();
    let keys: Vec<String> = source.metadata.iter().map(|(k, _)| k.to_owned()).collect();
    let arch = source.metadata.get_str("general.architecture").unwrap();
    on_all_cores(n, |dir, i| {
        let mut random = Random(seed + i as u64 * 0x9e37_79b9);
        random.next();
        let mut changes = Vec::new();
        let bytes = rewrite(model, |m, _| {
            for _ in 0..1 + random.below(2) {
                let key = &keys[random.below(keys.len())];
                match random.below(8) {
                    0 => {
                        m.remove(key);
                        changes.push(format!("no {key}"));
                    }
                    1 => {
                        let key = format!("{arch}.{}", EXTRA[random.below(EXTRA.len())]);
                        let like = [Value::U32(0), Value::F32(0.0), Value::Str("".into())];
                        let value = hostile_values(&like[random.below(3)], &mut random);
                        changes.push(format!("{key} {value:?}"));
                        m.set(key, value);
                    }
                    2 => {
                        m.set(key, Value::U64(u64::MAX));
                        changes.push(format!("{key} of another type"));
                    }
                    _ => {
                        if let Some(value) = m.get(key).cloned() {
                            let value = hostile_values(&value, &mut random);
                            let text = format!("{key} {value:?}");
                            changes.push(text.chars().take(200).collect());
                            m.set(key.clone(), value);
                        }
                    }
                }
            }
        });
        fs::write(dir.join("m.gguf"), bytes).unwrap();
        let commands = commands("m.gguf");
        let (args, output) = &commands[[1, 2, 3, 4, 1, 2][i % 6]];
        let case = format!(
            "{} {i} ({}), {}",
            model.display(),
            changes.join("; "),
            args[0]
        );
        attempt(&case, dir, args, *output);
    });
}

#[test]
fn inconsistent_metadata_of_the_tiny_model() {
    inconsistent_metadata(Path::new(TINY), 500, 0x5eed_3001);
}

#[test]
fn inconsistent_metadata_of_other_architectures() {
    for name in ["gpt_oss", "mixtral_spm", "lfm2_moe", "deepseek_v3"] {
        let model = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/oracle")
            .join(name)
            .join("reference-bf16.gguf");
        inconsistent_metadata(&model, 60, 0x5eed_3002);
    }
}

#[test]
fn what_llama_cpp_would_abort_over_is_an_error() {
    let dir = place();
    let set = |key: &str, value: Value| {
        let key = key.to_owned();
        with_metadata(move |m| {
            m.set(key, value);
        })
    };
    let tokens = |change: &dyn Fn(&mut Vec<Vec<u8>>)| {
        with_metadata(|m| {
            let old = m
                .get_array("tokenizer.ggml.tokens")
                .unwrap()
                .as_strings()
                .unwrap();
            let mut list: Vec<Vec<u8>> = old.iter().map(<[u8]>::to_vec).collect();
            change(&mut list);
            let strings: GStringArray = list.iter().map(Vec::as_slice).collect();
            m.set("tokenizer.ggml.tokens", Value::Array(Array::Str(strings)));
        })
    };
    // What stops every command that runs the model, and what the message names.
    let cases = [
        (
            set("qwen3moe.block_count", Value::U32(u32::MAX)),
            "qwen3moe.block_count",
        ),
        (
            set("qwen3moe.expert_used_count", Value::U32(5)),
            "qwen3moe.expert_used_count",
        ),
        (
            set("qwen3moe.expert_count", Value::U32(u32::MAX)),
            "qwen3moe.expert_count",
        ),
        (
            set("qwen3moe.expert_group_count", Value::U32(9)),
            "qwen3moe.expert_group_count",
        ),
        (
            set("qwen3moe.rope.scaling.type", Value::Str("spiral".into())),
            "qwen3moe.rope.scaling.type",
        ),
        (
            set(
                "qwen3moe.attention.layer_norm_rms_epsilon",
                Value::F32(-1.0),
            ),
            "qwen3moe.attention.layer_norm_rms_epsilon",
        ),
        (
            set("qwen3moe.attention.value_length", Value::U32(u32::MAX)),
            "qwen3moe.attention.value_length",
        ),
        // Only llama.cpp's own assertion knows this one.
        (
            set("qwen3moe.rope.dimension_count", Value::U32(8)),
            "GGML_ASSERT",
        ),
        (tokens(&|list| list[5] = list[4].clone()), "token 5"),
        // The vocabulary has no byte tokens: an exception while tokenizing.
        (
            set("tokenizer.ggml.model", Value::Str("llama".into())),
            "m.gguf",
        ),
        (
            rewrite(Path::new(TINY), |_, types| {
                types.push(("blk.0.attn_q.weight".into(), GgmlType::I16));
            }),
            "blk.0.attn_q.weight",
        ),
    ];
    for (bytes, words) in cases {
        fs::write(dir.path().join("m.gguf"), bytes).unwrap();
        for which in [1, 3] {
            let (args, output) = &commands("m.gguf")[which];
            refused(
                &format!("{words}, {}", args[0]),
                dir.path(),
                args,
                *output,
                words,
            );
        }
    }
}
