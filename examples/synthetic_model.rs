//! Writes a large MoE GGUF of the Qwen3-MoE layout with random weights, for measuring memory and speed.
//!
//! `synthetic_model OUT GIB [--sparse]`: with `--sparse` the tensor data is a hole in the file (zeros), and the
//! file takes no space. The vocabulary is that of the shipped model.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use anyhow::{Context, Result, bail};
use moqa::gguf::{DEFAULT_VERSION, GgmlType, Gguf, GgufLayout, Shape, TensorSpec};

const N_EMBD: u64 = 2048;
const N_FF: u64 = 768;
const N_EXPERT: u64 = 64;
const N_HEAD: u64 = 16;
const N_HEAD_KV: u64 = 4;
const HEAD_DIM: u64 = 128;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let (out, gib) = match &args[..] {
        [out, gib, ..] => (
            Path::new(out),
            gib.parse::<f64>().context("GIB is a number")?,
        ),
        _ => bail!("synthetic_model OUT GIB [--sparse]"),
    };
    let sparse = args.iter().any(|a| a == "--sparse");
    let shipped =
        Gguf::open(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/models/lab-moe.gguf"))?;
    let n_vocab = shipped
        .tensor("token_embd.weight")
        .context("the shipped model")?
        .ne(1);

    let tensor = |name: String, dims: &[u64], ty| TensorSpec {
        name,
        dims: Shape::new(dims).expect("valid"),
        ty,
    };
    let layer = |il: u64| {
        let t = |what: &str, dims: &[u64], ty| tensor(format!("blk.{il}.{what}.weight"), dims, ty);
        let bf16 = GgmlType::BF16;
        vec![
            t("attn_norm", &[N_EMBD], GgmlType::F32),
            t("attn_q", &[N_EMBD, N_HEAD * HEAD_DIM], bf16),
            t("attn_k", &[N_EMBD, N_HEAD_KV * HEAD_DIM], bf16),
            t("attn_v", &[N_EMBD, N_HEAD_KV * HEAD_DIM], bf16),
            t("attn_q_norm", &[HEAD_DIM], GgmlType::F32),
            t("attn_k_norm", &[HEAD_DIM], GgmlType::F32),
            t("attn_output", &[N_HEAD * HEAD_DIM, N_EMBD], bf16),
            t("ffn_norm", &[N_EMBD], GgmlType::F32),
            t("ffn_gate_inp", &[N_EMBD, N_EXPERT], GgmlType::F32),
            t("ffn_gate_exps", &[N_EMBD, N_FF, N_EXPERT], bf16),
            t("ffn_up_exps", &[N_EMBD, N_FF, N_EXPERT], bf16),
            t("ffn_down_exps", &[N_FF, N_EMBD, N_EXPERT], bf16),
        ]
    };
    let bytes = |specs: &[TensorSpec]| -> u64 {
        specs
            .iter()
            .map(|s| s.ty.row_bytes(s.dims.ne(0)).unwrap_or(0) * s.dims.n_rows())
            .sum()
    };
    let wanted = gib * (1u64 << 30) as f64;
    let n_layer = ((wanted / bytes(&layer(0)) as f64).round() as u64).max(1);
    let mut specs = vec![
        tensor(
            "token_embd.weight".into(),
            &[N_EMBD, n_vocab],
            GgmlType::BF16,
        ),
        tensor("output_norm.weight".into(), &[N_EMBD], GgmlType::F32),
    ];
    specs.extend((0..n_layer).flat_map(layer));

    let mut metadata = shipped.metadata.clone();
    let key = |k: &str| format!("qwen3moe.{k}");
    metadata.set("general.name", "synthetic");
    metadata.set(key("block_count"), n_layer as u32);
    metadata.set(key("embedding_length"), N_EMBD as u32);
    metadata.set(key("feed_forward_length"), N_FF as u32);
    metadata.set(key("expert_feed_forward_length"), N_FF as u32);
    metadata.set(key("attention.head_count"), N_HEAD as u32);
    metadata.set(key("attention.head_count_kv"), N_HEAD_KV as u32);
    metadata.set(key("attention.key_length"), HEAD_DIM as u32);
    metadata.set(key("attention.value_length"), HEAD_DIM as u32);
    metadata.set(key("rope.dimension_count"), HEAD_DIM as u32);
    metadata.set(key("expert_count"), N_EXPERT as u32);
    metadata.set(key("expert_used_count"), 8u32);

    let layout = GgufLayout::new(&metadata, specs, DEFAULT_VERSION)?;
    let file = File::create(out).with_context(|| format!("{}", out.display()))?;
    if sparse {
        let mut header = BufWriter::new(&file);
        header.write_all(layout.header())?;
        header.flush()?;
        file.set_len(layout.file_size())?;
    } else {
        let mut writer =
            moqa::gguf::GgufWriter::new(BufWriter::with_capacity(1 << 20, file), &layout)?;
        let mut random = 0x9E37_79B9_7F4A_7C15u64;
        for placed in layout.tensors() {
            let mut left = placed.n_bytes;
            while left > 0 {
                let n = left.min(1 << 20);
                writer.write_tensor_bytes(&values(placed.spec.ty, n as usize, &mut random))?;
                left -= n;
            }
        }
        writer.finish()?.flush()?;
    }
    println!(
        "{}: {n_layer} layers, {} bytes",
        out.display(),
        layout.file_size()
    );
    Ok(())
}

/// Roughly normal values of deviation 0.02 in the type.
fn values(ty: GgmlType, n: usize, state: &mut u64) -> Vec<u8> {
    let mut next = || {
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        let sum: i64 = (0..4)
            .map(|i| ((*state >> (16 * i)) & 0xffff) as i64 - 0x8000)
            .sum();
        sum as f32 / 37_837.0 * 0.02
    };
    let mut out = Vec::with_capacity(n);
    while out.len() < n {
        let v = next();
        if ty == GgmlType::F32 {
            out.extend_from_slice(&(1.0 + v).to_le_bytes());
        } else {
            out.extend_from_slice(
                &v.to_bits().to_be_bytes()[..2]
                    .iter()
                    .rev()
                    .copied()
                    .collect::<Vec<u8>>(),
            );
        }
    }
    out
}
