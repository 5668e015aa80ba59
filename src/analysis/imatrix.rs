//! The imatrix files of llama.cpp: activation statistics that llama-imatrix writes and llama-quantize reads,
//! in their GGUF form and the older binary form (`common/imatrix-loader.cpp`, `tools/imatrix/imatrix.cpp`).

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read, Write};
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use byteorder::{LittleEndian, ReadBytesExt, WriteBytesExt};

use super::stats::{Analysis, WeightStats};
use super::store::write_file;
use crate::gguf::{
    Array, DEFAULT_VERSION, GStringArray, GgmlType, Gguf, GgufLayout, GgufWriter, MAGIC, Metadata,
    Shape, TensorInfo, TensorSpec, Value,
};

const KEY_TYPE: &str = "general.type";
const KEY_DATASETS: &str = "imatrix.datasets";
const KEY_CHUNK_COUNT: &str = "imatrix.chunk_count";
const KEY_CHUNK_SIZE: &str = "imatrix.chunk_size";

/// Tokens of a chunk where a file does not tell: llama-imatrix's default context. A power of two, so that
/// multiplying by it changes no mantissa.
const ASSUMED_CHUNK: usize = 512;

/// The longest tensor or dataset name that is believed, in bytes: dataset names are paths.
const MAX_NAME: u64 = 1 << 16;

/// Reads an imatrix file of either form.
///
/// The GGUF form gives sums and counts as they are. The older form stores means times a number of calls; they
/// become sums over `calls * 512` tokens, so that `sum_sq / count` is the stored mean exactly. It has one
/// count for all experts of a tensor and no sums of plain activations; its writer stores ones for an expert
/// that no token reached, which cannot be told from data. The older form, and the GGUF form for weights of
/// several matrices that are not experts, do not tell the row length: `n_in` is then the number of all values
/// until [`fit_to_model`] sets it.
///
/// # Errors
/// The file cannot be read, is of another kind, or contradicts itself; names the file and the entry.
pub fn read(path: impl AsRef<Path>) -> Result<Analysis> {
    let path = path.as_ref();
    if is_gguf(path)? {
        from_gguf(&Gguf::open(path)?)
    } else {
        let (file, len) = open_regular(path)?;
        read_dat(BufReader::new(file), len).with_context(|| {
            format!(
                "{}: not a readable imatrix file (neither GGUF nor the older form)",
                path.display()
            )
        })
    }
}

/// Whether the file begins as a GGUF file does.
pub(super) fn is_gguf(path: &Path) -> Result<bool> {
    let (mut file, len) = open_regular(path)?;
    let mut start = [0; 4];
    if len < start.len() as u64 {
        return Ok(false);
    }
    file.read_exact(&mut start)
        .with_context(|| format!("{}: cannot read the file", path.display()))?;
    Ok(start == MAGIC)
}

/// Opens a file and tells its size; refuses pipes and directories before opening them.
fn open_regular(path: &Path) -> Result<(File, u64)> {
    let at = || format!("{}: cannot open the file", path.display());
    let is_file = std::fs::metadata(path).with_context(at)?.is_file();
    ensure!(
        is_file,
        "{}: not a regular file; give an imatrix file",
        path.display()
    );
    let file = File::open(path).with_context(at)?;
    let len = file.metadata().with_context(at)?.len();
    Ok((file, len))
}

/// Reads the GGUF form.
///
/// # Errors
/// As [`read`].
pub(super) fn from_gguf(gguf: &Gguf) -> Result<Analysis> {
    let path = gguf.paths()[0].display().to_string();
    gguf_entries(gguf).with_context(|| path)
}

fn gguf_entries(gguf: &Gguf) -> Result<Analysis> {
    let meta = &gguf.metadata;
    let mut analysis = Analysis {
        weights: gguf_weights(gguf, "", GgmlType::F32)?,
        ..Analysis::default()
    };
    if analysis.weights.is_empty() {
        let kind = meta.get_str(KEY_TYPE).unwrap_or("model");
        bail!(
            "no imatrix data in this file, it is of type '{kind}'; give a file that llama-imatrix wrote"
        );
    }
    if let Some(names) = meta.get_array(KEY_DATASETS).and_then(Array::as_strings) {
        analysis.origin.datasets = names
            .iter()
            .map(|n| String::from_utf8_lossy(n).into_owned())
            .collect();
    }
    let size = |key: &str| -> Result<usize> {
        let Some(value) = meta.get(key) else {
            return Ok(0);
        };
        let n = value.as_u64().and_then(|n| u32::try_from(n).ok());
        n.map(|n| n as usize)
            .with_context(|| format!("key {key} is not a 32-bit count; make the file again"))
    };
    analysis.origin.n_chunks = size(KEY_CHUNK_COUNT)?;
    analysis.origin.n_ctx = size(KEY_CHUNK_SIZE)?;
    Ok(analysis)
}

/// Reads the tensors `NAME.in_sum2`, `NAME.counts` and, where there are, `NAME.in_sum`, all after `prefix`. Others are
/// passed over.
///
/// # Errors
/// A tensor is missing, of another type, or contradicts its siblings; names it.
pub(super) fn gguf_weights(
    gguf: &Gguf,
    prefix: &str,
    counts_type: GgmlType,
) -> Result<BTreeMap<String, WeightStats>> {
    #[derive(Default)]
    struct Found<'a> {
        sum_sq: Option<&'a TensorInfo>,
        counts: Option<&'a TensorInfo>,
        sum: Option<&'a TensorInfo>,
    }
    let mut found: BTreeMap<&str, Found> = BTreeMap::new();
    for tensor in &gguf.tensors {
        let Some(name) = tensor.name.strip_prefix(prefix) else {
            continue;
        };
        if name.starts_with(super::store::RESERVED) {
            continue;
        }
        if let Some(name) = name.strip_suffix(".in_sum2") {
            found.entry(name).or_default().sum_sq = Some(tensor);
        } else if let Some(name) = name.strip_suffix(".counts") {
            found.entry(name).or_default().counts = Some(tensor);
        } else if let Some(name) = name.strip_suffix(".in_sum") {
            found.entry(name).or_default().sum = Some(tensor);
        }
    }
    let mut weights = BTreeMap::new();
    for (name, found) in found {
        let missing =
            |what: &str| format!("tensor {prefix}{name}.{what} is missing; make the file again");
        let sum_sq = found.sum_sq.with_context(|| missing("in_sum2"))?;
        let counts = found.counts.with_context(|| missing("counts"))?;
        ensure!(
            !name.is_empty(),
            "tensor {} is of no weight; make the file again",
            sum_sq.name
        );
        let n_counts = counts.n_elems();
        // As llama.cpp reads it: where every matrix has a count, the counts tell the number of matrices.
        let n_in = match n_counts {
            0 => bail!("tensor {} is empty; make the file again", counts.name),
            1 => sum_sq.ne(0),
            n if sum_sq.n_elems().is_multiple_of(n) => sum_sq.n_elems() / n,
            n => bail!(
                "tensor {} of shape {} does not divide into the {n} matrices of {}; make the file again",
                sum_sq.name,
                sum_sq.dims,
                counts.name
            ),
        };
        let stats = WeightStats {
            n_in: n_in as usize,
            counts: if counts_type == GgmlType::F64 {
                read_f64(gguf, counts)?
            } else {
                read_f32(gguf, counts)?.into_iter().map(f64::from).collect()
            },
            sum_sq: read_f32(gguf, sum_sq)?,
            sum: found.sum.map_or(Ok(Vec::new()), |t| read_f32(gguf, t))?,
        };
        check_weight(name, &stats).context("make the file again")?;
        weights.insert(name.to_owned(), stats);
    }
    Ok(weights)
}

fn read_f32(gguf: &Gguf, tensor: &TensorInfo) -> Result<Vec<f32>> {
    of_type(tensor, GgmlType::F32)?;
    let (values, _) = gguf.data(tensor).as_chunks::<4>();
    Ok(values.iter().map(|b| f32::from_le_bytes(*b)).collect())
}

pub(super) fn read_f64(gguf: &Gguf, tensor: &TensorInfo) -> Result<Vec<f64>> {
    of_type(tensor, GgmlType::F64)?;
    let (values, _) = gguf.data(tensor).as_chunks::<8>();
    Ok(values.iter().map(|b| f64::from_le_bytes(*b)).collect())
}

fn of_type(tensor: &TensorInfo, ty: GgmlType) -> Result<()> {
    ensure!(
        tensor.ty == ty,
        "tensor {} has type {}, not {ty}; make the file again",
        tensor.name,
        tensor.ty
    );
    Ok(())
}

/// Reads the older form: the number of entries; for each its name, calls, number of values and values; then,
/// optionally, the number of the last chunk and the dataset's name. Integers are `i32`, values `f32`.
fn read_dat(mut input: impl Read, len: u64) -> Result<Analysis> {
    let mut left = len;
    let n_entries = read_i32(&mut input, &mut left, "the number of entries")?;
    ensure!(
        n_entries > 0,
        "at byte 0: the number of entries is {n_entries}"
    );
    let mut analysis = Analysis::default();
    for i in 1..=n_entries {
        let at = len - left;
        let (name, stats) = read_dat_entry(&mut input, &mut left)
            .with_context(|| format!("entry {i} of {n_entries}, at byte {at}"))?;
        ensure!(
            analysis.weights.insert(name.clone(), stats).is_none(),
            "entry {i} of {n_entries}, at byte {at}: {name} occurs twice"
        );
    }
    if left > 0 {
        let n_chunks = read_i32(&mut input, &mut left, "the chunk count")?;
        analysis.origin.n_chunks = usize::try_from(n_chunks).ok().with_context(|| {
            format!("at byte {}: the chunk count is {n_chunks}", len - left - 4)
        })?;
    }
    if left > 0 {
        let name = read_string(&mut input, &mut left, "the dataset's name")?;
        if !name.is_empty() {
            analysis.origin.datasets.push(name);
        }
    }
    ensure!(
        left == 0,
        "at byte {}: {left} bytes follow the end",
        len - left
    );
    Ok(analysis)
}

fn read_dat_entry(input: &mut impl Read, left: &mut u64) -> Result<(String, WeightStats)> {
    let name = read_string(input, left, "a tensor's name")?;
    ensure!(!name.is_empty(), "the tensor's name is empty");
    let in_tensor = || format!("tensor {}", name.escape_debug());
    let calls = read_i32(input, left, "the number of calls").with_context(in_tensor)?;
    ensure!(
        calls >= 0,
        "{}: the number of calls is {calls}",
        in_tensor()
    );
    let n = read_i32(input, left, "the number of values").with_context(in_tensor)?;
    ensure!(n > 0, "{}: the number of values is {n}", in_tensor());
    let n_bytes = n as u64 * 4;
    ensure!(
        n_bytes <= *left,
        "{}: {n} values do not fit the {left} bytes left",
        in_tensor()
    );
    *left -= n_bytes;
    let mut sum_sq = vec![0f32; n as usize];
    input
        .read_f32_into::<LittleEndian>(&mut sum_sq)
        .with_context(in_tensor)?;
    for v in &mut sum_sq {
        *v *= ASSUMED_CHUNK as f32;
    }
    // No calls means that the values are means, see llama-quantize's load_imatrix.
    let count = f64::from(calls.max(1)) * ASSUMED_CHUNK as f64;
    let stats = WeightStats {
        n_in: sum_sq.len(),
        counts: vec![count],
        sum_sq,
        sum: Vec::new(),
    };
    stats.check().with_context(in_tensor)?;
    Ok((name, stats))
}

fn read_i32(input: &mut impl Read, left: &mut u64, what: &str) -> Result<i32> {
    ensure!(
        *left >= 4,
        "the file ends before {what}; it was cut off, make it again"
    );
    *left -= 4;
    input
        .read_i32::<LittleEndian>()
        .with_context(|| format!("cannot read {what}"))
}

fn read_string(input: &mut impl Read, left: &mut u64, what: &str) -> Result<String> {
    let n = read_i32(input, left, what)?;
    let n = u64::try_from(n)
        .ok()
        .filter(|n| *n <= MAX_NAME.min(*left))
        .with_context(|| format!("{what} has a length of {n} bytes, and {left} bytes are left"))?;
    *left -= n;
    let mut bytes = vec![0; n as usize];
    input
        .read_exact(&mut bytes)
        .with_context(|| format!("cannot read {what}"))?;
    String::from_utf8(bytes)
        .ok()
        .with_context(|| format!("{what} is not valid UTF-8"))
}

/// Writes the GGUF form to a file, which appears only once it is complete. llama-imatrix and llama-quantize
/// read it. Counts become float32, as llama.cpp stores them.
///
/// A weight of several matrices with one count is stored as llama-imatrix stores it, as one row; reading it
/// again needs [`fit_to_model`]. Routers and measured effects have no place in this form.
///
/// # Errors
/// The analysis is empty or not valid, a tensor's name is too long, or the file cannot be written.
pub fn write(path: impl AsRef<Path>, analysis: &Analysis) -> Result<()> {
    write_file(path.as_ref(), |out| write_to(out, analysis))
}

/// Writes the GGUF form to `out`; see [`write()`].
///
/// # Errors
/// As [`write()`].
pub fn write_to(out: impl Write, analysis: &Analysis) -> Result<()> {
    check_all(analysis)?;
    let origin = &analysis.origin;
    let mut meta = Metadata::new();
    meta.set(KEY_TYPE, "imatrix");
    let datasets: GStringArray = origin.datasets.iter().map(|d| d.as_bytes()).collect();
    meta.set(KEY_DATASETS, Value::Array(Array::Str(datasets)));
    meta.set(
        KEY_CHUNK_COUNT,
        u32::try_from(origin.n_chunks).unwrap_or(u32::MAX),
    );
    meta.set(
        KEY_CHUNK_SIZE,
        u32::try_from(chunk_size(analysis)).unwrap_or(u32::MAX),
    );

    let mut specs = Vec::new();
    for (name, w) in &analysis.weights {
        // Readers before 2026 index the counts by the rows of in_sum2.
        let rows = w.counts.len();
        push_specs(
            &mut specs,
            name,
            w,
            w.sum_sq.len() / rows,
            rows,
            GgmlType::F32,
        )?;
    }
    let layout = GgufLayout::new(&meta, specs, DEFAULT_VERSION)?;
    let mut writer = GgufWriter::new(out, &layout)?;
    for (name, w) in &analysis.weights {
        let counts: Vec<f32> = w.counts.iter().map(|c| *c as f32).collect();
        write_weight(&mut writer, name, w, &f32_bytes(&counts))?;
    }
    writer.finish()?;
    Ok(())
}

/// Adds the tensors that hold `w`: `NAME.in_sum2` [n_in, rows], `NAME.counts` [1, n_counts] and `NAME.in_sum`.
pub(super) fn push_specs(
    specs: &mut Vec<TensorSpec>,
    name: &str,
    w: &WeightStats,
    n_in: usize,
    rows: usize,
    counts_type: GgmlType,
) -> Result<()> {
    let spec = |what: &str, dims: [usize; 2], ty: GgmlType| -> Result<TensorSpec> {
        let dims = dims.map(|d| d as u64);
        // ggml does not state trailing dimensions of 1.
        let stated = if dims[1] == 1 { &dims[..1] } else { &dims[..] };
        Ok(TensorSpec {
            name: format!("{name}.{what}"),
            dims: Shape::new(stated).context("two dimensions are always possible")?,
            ty,
        })
    };
    specs.push(spec("in_sum2", [n_in, rows], GgmlType::F32)?);
    specs.push(spec("counts", [1, w.counts.len()], counts_type)?);
    if !w.sum.is_empty() {
        specs.push(spec("in_sum", [n_in, rows], GgmlType::F32)?);
    }
    Ok(())
}

/// Writes the data of the tensors that [`push_specs`] added.
pub(super) fn write_weight<W: Write>(
    writer: &mut GgufWriter<'_, W>,
    name: &str,
    w: &WeightStats,
    counts: &[u8],
) -> Result<()> {
    writer.write_tensor(&format!("{name}.in_sum2"), &f32_bytes(&w.sum_sq))?;
    writer.write_tensor(&format!("{name}.counts"), counts)?;
    if !w.sum.is_empty() {
        writer.write_tensor(&format!("{name}.in_sum"), &f32_bytes(&w.sum))?;
    }
    Ok(())
}

fn f32_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// Writes the older form to a file, for programs from before mid-2025. Experts without tokens become ones and
/// weights without any token are left out, as llama-imatrix does it; plain sums have no place in this form.
///
/// # Errors
/// As [`write()`]; also if no weight was reached by a token.
pub fn write_dat(path: impl AsRef<Path>, analysis: &Analysis) -> Result<()> {
    write_file(path.as_ref(), |out| write_dat_to(out, analysis))
}

/// Writes the older form to `out`; see [`write_dat`].
///
/// # Errors
/// As [`write_dat`].
pub fn write_dat_to(mut out: impl Write, analysis: &Analysis) -> Result<()> {
    check_all(analysis)?;
    let reached: Vec<_> = analysis
        .weights
        .iter()
        .filter(|(_, w)| w.counts.iter().any(|c| *c > 0.0))
        .collect();
    ensure!(
        !reached.is_empty(),
        "no tensor was reached by a token; calibrate on more text"
    );
    out.write_i32::<LittleEndian>(small(reached.len(), "entries")?)?;
    let chunk = chunk_size(analysis) as f64;
    for (name, w) in reached {
        let tensor = || format!("tensor {name}");
        out.write_i32::<LittleEndian>(small(name.len(), "bytes of a name").with_context(tensor)?)?;
        out.write_all(name.as_bytes())?;
        // Rounded up: no calls would mean no data.
        let calls = (w.counts.iter().fold(0.0f64, |a, b| a.max(*b)) / chunk).ceil();
        ensure!(
            calls <= f64::from(i32::MAX),
            "{}: {calls} chunks do not fit this form",
            tensor()
        );
        out.write_i32::<LittleEndian>(calls as i32)?;
        out.write_i32::<LittleEndian>(small(w.sum_sq.len(), "values").with_context(tensor)?)?;
        let row = w.sum_sq.len() / w.counts.len();
        for (values, count) in w.sum_sq.chunks_exact(row).zip(&w.counts) {
            let count = *count as f32;
            for v in values {
                let mean = if count > 0.0 { v / count } else { 1.0 };
                out.write_f32::<LittleEndian>(mean * calls as f32)?;
            }
        }
    }
    out.write_i32::<LittleEndian>(small(analysis.origin.n_chunks, "chunks")?)?;
    let dataset = analysis.origin.datasets.last().map_or("", String::as_str);
    out.write_i32::<LittleEndian>(small(dataset.len(), "bytes of the dataset's name")?)?;
    out.write_all(dataset.as_bytes())?;
    out.flush()?;
    Ok(())
}

fn small(n: usize, what: &str) -> Result<i32> {
    i32::try_from(n).ok().with_context(|| {
        format!("{n} {what} do not fit the older imatrix form; write the GGUF form")
    })
}

fn chunk_size(analysis: &Analysis) -> usize {
    if analysis.origin.n_ctx == 0 {
        ASSUMED_CHUNK
    } else {
        analysis.origin.n_ctx
    }
}

fn check_all(analysis: &Analysis) -> Result<()> {
    ensure!(
        !analysis.weights.is_empty(),
        "an analysis without statistics cannot become an imatrix file"
    );
    analysis
        .weights
        .iter()
        .try_for_each(|(name, w)| check_weight(name, w))
}

/// What holds of the statistics of every weight that is written or read.
pub(super) fn check_weight(name: &str, w: &WeightStats) -> Result<()> {
    let at = || format!("statistics of {name}");
    w.check().with_context(at)?;
    ensure!(!w.sum_sq.is_empty(), "{}: no values", at());
    Ok(())
}

/// Gives the statistics the shapes of the model's tensors: rows of `ne0` values, one for each of the
/// `ne2 * ne3` matrices. Removes entries for tensors that the model lacks and returns their names.
///
/// # Errors
/// The number of values, counts or measured errors does not suit a tensor; names it and both shapes. Nothing is changed
/// then.
pub fn fit_to_model(analysis: &mut Analysis, gguf: &Gguf) -> Result<Vec<String>> {
    for domain in &analysis.domains {
        for (name, w) in domain.weights.iter() {
            let beside = analysis.weights.get(name);
            ensure!(
                beside.is_none_or(|all| all.sum_sq.len() == w.sum_sq.len()),
                "tensor {name}: statistics of {} values in domain '{}', and of another number in all text; analyze the model again",
                w.sum_sq.len(),
                domain.name
            );
        }
    }
    let mut shapes = Vec::new();
    let mut unknown = Vec::new();
    for (name, w) in &analysis.weights {
        let Some(tensor) = gguf.tensor(name) else {
            unknown.push(name.clone());
            continue;
        };
        let (n_in, n_mat) = (tensor.ne(0), tensor.ne(2).saturating_mul(tensor.ne(3)));
        let fits = n_in > 0
            && n_in.checked_mul(n_mat) == Some(w.sum_sq.len() as u64)
            && (w.counts.len() == 1 || w.counts.len() as u64 == n_mat);
        ensure!(
            fits,
            "tensor {name}: statistics of {} matrices of {} channels ({} counts), but the model's tensor of shape {} has {n_mat} of {n_in}; \
             the statistics are of another model, measure this one",
            w.n_mat(),
            w.n_in,
            w.counts.len(),
            tensor.dims
        );
        shapes.push(n_in as usize);
    }
    for (name, errors) in analysis.errors.iter() {
        let Some(tensor) = gguf.tensor(name) else {
            continue;
        };
        // As they are measured.
        let n_mat = tensor.n_rows() / tensor.ne(1).max(1);
        let of_types = errors.by_type.values().map(Vec::len);
        for n in of_types.chain([errors.energy.len()]) {
            ensure!(
                n as u64 == n_mat,
                "tensor {name}: errors of {n} matrices, but the model's tensor of shape {} has {n_mat}; \
                 the errors are of another model, analyze this one",
                tensor.dims
            );
        }
    }
    for name in &unknown {
        analysis.weights.remove(name);
    }
    for (w, n_in) in analysis.weights.values_mut().zip(shapes) {
        w.n_in = n_in;
    }
    Ok(unknown)
}
