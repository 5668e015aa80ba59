//! From a source model and a type for each tensor to a file.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::Write;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use moqa_mixed::Layout;
use serde::Serialize;

use super::pipeline::ordered_parallel;
use super::refit::Refit;
use super::rescale::{can_rescale, rescale};
use crate::analysis::Importance;
use crate::ggml;
use crate::gguf::{
    GgmlType, Gguf, GgufError, GgufLayout, GgufWriter, Metadata, TensorInfo, shard_path,
};
use crate::mixed::{self, Mixture};
use crate::output::{AtomicFile, refuse_overwriting};
use crate::plan::Plan;
use crate::progress::Progress;
use crate::runtime::Preset;

/// Values of a row block that one worker converts at a time: a MiB of float32.
const BLOCK_VALUES: u64 = 1 << 18;
/// Row blocks in memory per thread.
const BLOCKS_PER_THREAD: usize = 4;

/// How the file is written.
#[derive(Clone, Debug)]
pub struct EncodeOptions {
    /// Worker threads.
    pub n_threads: usize,
    /// Write shards of at most this many bytes of tensor data.
    pub split_max_bytes: Option<u64>,
}

/// What was written.
#[derive(Clone, Debug, Serialize)]
pub struct EncodeReport {
    /// The files, one unless split.
    pub files: Vec<PathBuf>,
    /// Their bytes together.
    pub bytes: u64,
    /// Seconds it took.
    pub seconds: f64,
}

/// Metadata of the new file: the source's, without its split keys, with the quantization version, the file
/// type (the preset whose base type is the commonest by weights) and what moqa records.
pub fn output_metadata(
    source: &Gguf,
    types: &BTreeMap<String, GgmlType>,
    records: &[(&str, String)],
) -> Metadata {
    let mut metadata = source.metadata.clone();
    metadata.remove_split_keys();
    metadata.set("general.quantization_version", 2u32);
    metadata.set("general.file_type", file_type(source, types));
    for (key, value) in records {
        metadata.set(*key, value.as_str());
    }
    metadata
}

/// llama.cpp shows this number as the file's type; no runtime behaviour depends on it.
fn file_type(source: &Gguf, types: &BTreeMap<String, GgmlType>) -> u32 {
    let mut weights: BTreeMap<GgmlType, u64> = BTreeMap::new();
    for t in &source.tensors {
        let ty = types.get(&t.name).copied().unwrap_or(t.ty);
        if t.ne(1) > 1 {
            *weights.entry(ty).or_default() += t.n_elems();
        }
    }
    let common = weights
        .iter()
        .max_by_key(|(_, n)| **n)
        .map_or(GgmlType::F32, |(ty, _)| *ty);
    let preset = match common {
        GgmlType::Q3_K => "Q3_K_M".into(),
        GgmlType::Q4_K => "Q4_K_M".into(),
        GgmlType::Q5_K => "Q5_K_M".into(),
        ty => ty.name().to_ascii_uppercase(),
    };
    // LLAMA_FTYPE_ALL_F32 is 0.
    preset.parse::<Preset>().map_or(0, Preset::ftype)
}

/// Layouts of the file or its shards: exact sizes and offsets, before any data exists.
///
/// # Errors
/// A type does not fit a tensor's shape.
pub fn shard_layouts(
    source: &Gguf,
    metadata: &Metadata,
    types: &BTreeMap<String, GgmlType>,
    split_max_bytes: Option<u64>,
) -> Result<Vec<GgufLayout>> {
    let specs = source
        .tensors
        .iter()
        .map(|t| {
            let mut spec = t.spec();
            spec.ty = types.get(&t.name).copied().unwrap_or(t.ty);
            spec
        })
        .collect();
    // A version 2 source is written as version 3: same layout, and what llama.cpp writes.
    let version = crate::gguf::DEFAULT_VERSION;
    Ok(match split_max_bytes {
        // `moqa run` replaces the file with the guard.
        Some(max) if mixed::is_guarded(metadata) => {
            GgufLayout::split_after_header(metadata, specs, version, max)?
        }
        Some(max) => GgufLayout::split(metadata, specs, version, max)?,
        None => vec![GgufLayout::new(metadata, specs, version)?],
    })
}

/// A run of rows of one tensor.
#[derive(Clone, Copy)]
struct Block<'a> {
    tensor: &'a TensorInfo,
    ty: GgmlType,
    first_row: u64,
    n_rows: u64,
    shard: usize,
    /// A mixed tensor that begins here.
    begins: Option<&'a Layout>,
    /// Zero bytes after the rows.
    zeros: u64,
    /// A mixed tensor that ends here, and its bytes.
    ends: Option<(&'a Layout, u64)>,
}

/// Writes `target` (or its shards). Tensors that `types` does not name keep their type and bytes.
///
/// # Errors
/// A tensor cannot be quantized, the disk is full, or the target cannot be written. Nothing is left then.
pub fn encode(
    source: &Gguf,
    metadata: &Metadata,
    types: &BTreeMap<String, GgmlType>,
    importance: &Importance,
    target: &Path,
    options: &EncodeOptions,
    progress: &Progress,
) -> Result<EncodeReport> {
    let stock = Mixture::default();
    encode_mixed(
        source,
        metadata,
        types,
        &stock,
        importance,
        &Refit::default(),
        target,
        options,
        progress,
    )
}

/// As [`encode`], with the experts of the tensors in `mixture` each in its type. `types` must be what
/// [`Mixture::file_types`] gives, and `metadata` guarded ([`mixed::guard_metadata`]). What was fitted on the quantized
/// model goes in.
///
/// # Errors
/// As [`encode`].
#[allow(clippy::too_many_arguments)]
pub fn encode_mixed(
    source: &Gguf,
    metadata: &Metadata,
    types: &BTreeMap<String, GgmlType>,
    mixture: &Mixture,
    importance: &Importance,
    refit: &Refit,
    target: &Path,
    options: &EncodeOptions,
    progress: &Progress,
) -> Result<EncodeReport> {
    ensure!(
        mixture.is_empty() || mixed::is_guarded(metadata),
        "a mixed file without its guard must not be written"
    );
    let convert = |block: &Block<'_>| convert(source, block, importance, refit);
    write_blocks(
        source, metadata, types, mixture, target, options, progress, &convert,
    )
}

/// Writes `target` with every tensor that `plan` names quantized as it says, by expert where it says so, and
/// turned back into `out_type`, a float type. Other tensors keep their type and bytes.
///
/// # Errors
/// As [`encode`].
#[allow(clippy::too_many_arguments)]
pub fn simulate(
    source: &Gguf,
    metadata: &Metadata,
    plan: &Plan,
    out_type: GgmlType,
    importance: &Importance,
    refit: &Refit,
    target: &Path,
    options: &EncodeOptions,
    progress: &Progress,
) -> Result<EncodeReport> {
    let (types, experts) = (plan.types(), plan.expert_types());
    let kept = types.keys().map(|name| (name.clone(), out_type)).collect();
    let round_trip = |block: &Block<'_>| {
        let name = &block.tensor.name;
        let expert = (block.first_row / block.tensor.ne(1).max(1)) as usize;
        let ty = experts
            .get(name)
            .and_then(|e| e.get(expert))
            .or(types.get(name))
            .copied();
        let Some(ty) = ty.filter(|ty| *ty != block.tensor.ty) else {
            return convert(source, block, importance, refit);
        };
        let coded = convert(source, &Block { ty, ..*block }, importance, refit)?;
        let n_in = block.tensor.ne(0);
        let mut values = vec![0f32; (n_in * block.n_rows) as usize];
        ggml::decode(ty, &coded, &mut values)?;
        let mut out = vec![0u8; (out_type.row_bytes(n_in).unwrap_or(0) * block.n_rows) as usize];
        ggml::encode(out_type, &values, n_in as usize, None, &mut out)?;
        Ok(Cow::Owned(out))
    };
    write_blocks(
        source,
        metadata,
        &kept,
        &Mixture::default(),
        target,
        options,
        progress,
        &round_trip,
    )
}

/// Writes the file whose tensors have `types`, or the experts those of `mixture`, the bytes of each block by `make`.
#[allow(clippy::too_many_arguments)]
fn write_blocks<'a>(
    source: &'a Gguf,
    metadata: &Metadata,
    types: &BTreeMap<String, GgmlType>,
    mixture: &Mixture,
    target: &Path,
    options: &EncodeOptions,
    progress: &Progress,
    make: &(dyn Fn(&Block<'_>) -> Result<Cow<'a, [u8]>> + Sync),
) -> Result<EncodeReport> {
    let started = Instant::now();
    let layouts = shard_layouts(source, metadata, types, options.split_max_bytes)?;
    let paths: Vec<PathBuf> = if options.split_max_bytes.is_some() {
        let prefix = target.with_extension("");
        (0..layouts.len())
            .map(|i| shard_path(&prefix, i, layouts.len()))
            .collect()
    } else {
        vec![target.to_owned()]
    };
    for path in &paths {
        refuse_overwriting(path, source.paths())?;
    }
    let total: u64 = layouts.iter().map(GgufLayout::file_size).sum();
    let mut blocks = Vec::new();
    for (shard, layout) in layouts.iter().enumerate() {
        for placed in layout.tensors() {
            let tensor = source
                .tensor(&placed.spec.name)
                .with_context(|| format!("tensor {}: not in the source", placed.spec.name))?;
            match mixture.layout(&tensor.name) {
                Some(layout) => {
                    push_experts(&mut blocks, tensor, layout, placed.n_bytes, shard)?;
                }
                None => {
                    let ty = placed.spec.ty;
                    push_blocks(&mut blocks, tensor, 0..tensor.n_rows(), ty, shard);
                }
            }
        }
    }
    let files = paths
        .iter()
        .map(|p| AtomicFile::create(p))
        .collect::<Result<Vec<_>>>()?;
    if let Some(file) = files.first() {
        file.require_space(total)?;
    }

    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(options.n_threads.max(1))
        .build()?;
    let source_bytes: u64 = source.tensors.iter().map(TensorInfo::n_bytes).sum();
    let bar = progress.bar(
        if types.is_empty() {
            "converting"
        } else {
            "quantizing"
        },
        source_bytes,
        "bytes",
    );
    let mut writers = files
        .into_iter()
        .zip(&layouts)
        .zip(&paths)
        .map(|((file, layout), path)| {
            let writer = GgufWriter::new(file, layout).with_context(|| cannot_write(path))?;
            Ok(Some(writer))
        })
        .collect::<Result<Vec<_>>>()?;
    let mut done = Vec::new();
    let mut current = 0;
    ordered_parallel(
        &pool,
        blocks.len(),
        pool.current_num_threads() * BLOCKS_PER_THREAD,
        |i| make(&blocks[i]),
        |i, bytes| {
            let block = &blocks[i];
            while current < block.shard {
                let writer = writers[current].take().map(GgufWriter::finish);
                done.extend(
                    writer
                        .transpose()
                        .with_context(|| cannot_write(&paths[current]))?,
                );
                current += 1;
            }
            if let Some(writer) = &mut writers[block.shard] {
                write_block(writer, block, &bytes)
                    .with_context(|| cannot_write(&paths[block.shard]))?;
            }
            bar.inc(block.n_rows * block.tensor.ty.row_bytes(block.tensor.ne(0)).unwrap_or(0));
            Ok(())
        },
    )?;
    for (writer, path) in writers.into_iter().zip(&paths) {
        let writer = writer.map(GgufWriter::finish);
        done.extend(writer.transpose().with_context(|| cannot_write(path))?);
    }
    // The first shard, by whose name a model is opened, last: it appears when all others are there.
    for file in done.into_iter().rev() {
        file.commit()?;
    }
    bar.finish();
    Ok(EncodeReport {
        files: paths,
        bytes: total,
        seconds: started.elapsed().as_secs_f64(),
    })
}

fn cannot_write(path: &Path) -> String {
    format!("{}: cannot write", path.display())
}

/// A block's bytes with what stands before and after them.
fn write_block<W: Write>(
    writer: &mut GgufWriter<'_, W>,
    block: &Block<'_>,
    bytes: &[u8],
) -> Result<(), GgufError> {
    const ZEROS: [u8; 4096] = [0; 4096];
    if let Some(layout) = block.begins {
        writer.write_tensor_bytes(&layout.to_header())?;
    }
    writer.write_tensor_bytes(bytes)?;
    let mut left = block.zeros;
    while left > 0 {
        let n = left.min(ZEROS.len() as u64);
        writer.write_tensor_bytes(&ZEROS[..n as usize])?;
        left -= n;
    }
    if let Some((layout, tensor_bytes)) = block.ends {
        writer.write_tensor_bytes(&layout.to_seal(tensor_bytes))?;
    }
    Ok(())
}

/// Cuts rows of a tensor into blocks that do not cross from one expert's matrix into the next.
fn push_blocks<'a>(
    blocks: &mut Vec<Block<'a>>,
    tensor: &'a TensorInfo,
    rows: Range<u64>,
    ty: GgmlType,
    shard: usize,
) {
    let per_matrix = tensor.ne(1);
    let per_block = (BLOCK_VALUES / tensor.ne(0).max(1)).max(1);
    let mut row = rows.start;
    while row < rows.end {
        let n_rows = (per_block.min(per_matrix - row % per_matrix)).min(rows.end - row);
        blocks.push(Block {
            tensor,
            ty,
            first_row: row,
            n_rows,
            shard,
            begins: None,
            zeros: 0,
            ends: None,
        });
        row += n_rows;
    }
}

/// Cuts a mixed tensor, which has `tensor_bytes` in its carrier, into blocks.
fn push_experts<'a>(
    blocks: &mut Vec<Block<'a>>,
    tensor: &'a TensorInfo,
    layout: &'a Layout,
    tensor_bytes: u64,
    shard: usize,
) -> Result<()> {
    let n_out = layout.shape.n_out;
    let first = blocks.len();
    let seal = tensor_bytes.saturating_sub(moqa_mixed::SEAL_BYTES);
    let ends = (layout.experts[1..].iter().map(|e| e.offset)).chain([seal]);
    for ((expert, end), number) in layout.experts.iter().zip(ends).zip(0u64..) {
        let ty = GgmlType::from_id(expert.type_id)
            .with_context(|| format!("tensor {}: unknown type", tensor.name))?;
        push_blocks(
            blocks,
            tensor,
            number * n_out..(number + 1) * n_out,
            ty,
            shard,
        );
        if let Some(last) = blocks[first..].last_mut() {
            let filled = expert.offset + expert.row_bytes * n_out;
            last.zeros = end
                .checked_sub(filled)
                .with_context(|| format!("tensor {}: no room in its carrier", tensor.name))?;
        }
    }
    if let Some(block) = blocks.get_mut(first) {
        block.begins = Some(layout);
    }
    if let Some(block) = blocks[first..].last_mut() {
        block.ends = Some((layout, tensor_bytes));
    }
    Ok(())
}

fn convert<'a>(
    source: &'a Gguf,
    block: &Block<'_>,
    importance: &Importance,
    refit: &Refit,
) -> Result<Cow<'a, [u8]>> {
    let tensor = block.tensor;
    let n_in = tensor.ne(0) as usize;
    let first = block.first_row as usize;
    let src = source.rows(tensor, block.first_row..block.first_row + block.n_rows)?;
    let describe = || {
        format!(
            "{}: tensor {} (offset {}), rows {first} to {}",
            source.paths()[tensor.part].display(),
            tensor.name,
            tensor.file_offset,
            first + block.n_rows as usize - 1
        )
    };
    if let Some(router) = refit.routers.get(&tensor.name) {
        let rows = first * n_in..(first + block.n_rows as usize) * n_in;
        let values = router.get(rows).with_context(|| {
            format!(
                "{}: the router that was fitted is of another shape",
                describe()
            )
        })?;
        let row_bytes = block.ty.row_bytes(tensor.ne(0)).with_context(describe)?;
        let mut out = vec![0u8; row_bytes as usize * block.n_rows as usize];
        ggml::encode(block.ty, values, n_in, None, &mut out).with_context(describe)?;
        return Ok(Cow::Owned(out));
    }
    if block.ty == tensor.ty {
        ensure!(
            ggml::is_valid(tensor.ty, &src),
            "{}: values that are not finite or not valid {}; the source is damaged, get it again",
            describe(),
            tensor.ty
        );
        return Ok(src);
    }
    let mut values = vec![0f32; n_in * block.n_rows as usize];
    ggml::decode(tensor.ty, &src, &mut values).with_context(describe)?;
    let row_bytes = block.ty.row_bytes(tensor.ne(0)).with_context(|| {
        format!(
            "{}: rows of {n_in} values do not fill blocks of {}",
            describe(),
            block.ty
        )
    })?;
    let mut out = vec![0u8; row_bytes as usize * block.n_rows as usize];
    let expert = first / tensor.ne(1).max(1) as usize;
    ggml::encode(
        block.ty,
        &values,
        n_in,
        importance.of(&tensor.name, expert, n_in),
        &mut out,
    )
    .with_context(describe)?;
    if can_rescale(block.ty) {
        rescale(block.ty, &mut out, refit.scale(&tensor.name, expert))?;
    }
    Ok(Cow::Owned(out))
}
