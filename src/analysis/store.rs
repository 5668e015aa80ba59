//! The `.moqa` file: an analysis kept for later, lossless.
//!
//! It is a GGUF container with `general.type` = "moqa-analysis". Statistics of weights are the tensors
//! `NAME.in_sum2` [n_in, n_mat] and `NAME.in_sum` in F32 and `NAME.counts` [1, n_counts] in F64; those of
//! routers are `moqa.router.N.{counts,gate_mass,gate_mass_sq}` [n_expert] in F64 with the keys
//! `moqa.router.N.{tokens,n_used}`; statistics of weights in the text of domain `N` are `moqa.domain.N.NAME.{in_sum2,counts}`,
//! of equal inputs once; measured effects and errors are parallel
//! arrays `moqa.probes.{tensor,type,value}` and `moqa.errors.*` (see [`set_errors`]). The optional arrays
//! `moqa.distribution.*` hold the distributions of weights (see [`set_distributions`]).

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};

use super::distribution::{Distributions, MatrixDistribution};
use super::error::{ErrorTable, TensorErrors};
use super::imatrix;
use super::sensitivity::{JointProbe, Probe};
use super::stats::{Analysis, Coactivation, Domain, RouterStats, Sample};
use crate::gguf::{
    Array, DEFAULT_VERSION, GStringArray, GgmlType, Gguf, GgufLayout, GgufWriter, Metadata, Shape,
    TensorSpec, Value,
};
use crate::output::AtomicFile;

/// The value of `general.type`.
const TYPE: &str = "moqa-analysis";
/// The version this program writes and reads.
const VERSION: u32 = 1;
/// Names that begin so are not those of weights.
pub(super) const RESERVED: &str = "moqa.";

const KEY_TYPE: &str = "general.type";
const KEY_VERSION: &str = "moqa.analysis.version";
const KEY_ARCHITECTURE: &str = "moqa.origin.architecture";
const KEY_DIGEST: &str = "moqa.origin.model_digest";
const KEY_DATASETS: &str = "moqa.origin.datasets";
const KEY_N_CTX: &str = "moqa.origin.n_ctx";
const KEY_N_CHUNKS: &str = "moqa.origin.n_chunks";
const KEY_ROUTERS: &str = "moqa.routers";
/// Measured effects on the output: mean KL divergence in nats.
const PROBES: &str = "moqa.probes";
/// Measured effects of several tensors at once: types, mean KL divergences, numbers of tensors and all their names; older
/// files have none.
const JOINT: &str = "moqa.joint";
/// Whether effects are to be taken as independent.
const KEY_INDEPENDENT: &str = "moqa.independent";
/// Tokens sent to each pair of experts, [n_expert, n_expert].
const TOGETHER: &str = "together";
/// Scalar products of the outputs of each pair of experts, [n_expert, n_expert].
const OUTPUTS: &str = "outputs";
/// Samples of the text: tokens of all chunks, the chunks' lengths, and their domains if they are known.
const SAMPLE: &str = "moqa.sample";
const CHECKS: &str = "moqa.checks";
/// Labels of the domains; their routers are under `moqa.domain.N`.
const KEY_DOMAINS: &str = "moqa.domains";
/// Relative output errors.
const ERRORS: &str = "moqa.errors";
/// Distributions of weights; older files have none.
const DISTRIBUTION: &str = "moqa.distribution";

/// Saves an analysis. The file appears only once it is complete; equal analyses give equal files.
///
/// # Errors
/// The analysis is not valid, a tensor's name is longer than 55 bytes, or the file cannot be written.
pub fn save(path: impl AsRef<Path>, analysis: &Analysis) -> Result<()> {
    write_file(path.as_ref(), |out| serialize(out, analysis))
}

/// Loads an analysis from a `.moqa` file or from an imatrix file of either form (see [`imatrix::read`]).
///
/// # Errors
/// The file cannot be read, is of another kind or a newer version, or contradicts itself; names the file.
pub fn load(path: impl AsRef<Path>) -> Result<Analysis> {
    let path = path.as_ref();
    if !imatrix::is_gguf(path)? {
        return imatrix::read(path);
    }
    let gguf = Gguf::open(path)?;
    if gguf.metadata.get_str(KEY_TYPE) == Some(TYPE) {
        parse(&gguf).with_context(|| path.display().to_string())
    } else {
        imatrix::from_gguf(&gguf)
    }
}

/// `blake3:` and the hexadecimal digest of the bytes that [`save`] would write.
///
/// # Errors
/// The analysis cannot be saved.
pub fn digest(analysis: &Analysis) -> Result<String> {
    let mut hasher = blake3::Hasher::new();
    serialize(&mut hasher, analysis)?;
    Ok(format!("blake3:{}", hasher.finalize().to_hex()))
}

/// Writes a file so that it appears under its name only once it is complete.
pub(super) fn write_file(
    path: &Path,
    content: impl FnOnce(&mut dyn Write) -> Result<()>,
) -> Result<()> {
    let mut file = AtomicFile::create(path)?;
    content(&mut file).with_context(|| format!("{}: cannot write the file", path.display()))?;
    file.commit()
}

fn router_name(layer: usize, what: &str) -> String {
    format!("moqa.router.{layer}.{what}")
}

fn serialize(out: impl Write, analysis: &Analysis) -> Result<()> {
    check(analysis)?;
    let strings = |items: &mut dyn Iterator<Item = &str>| -> Value {
        Value::Array(Array::Str(
            items.map(str::as_bytes).collect::<GStringArray>(),
        ))
    };
    let origin = &analysis.origin;
    let mut meta = Metadata::new();
    meta.set(KEY_TYPE, TYPE);
    meta.set(KEY_VERSION, VERSION);
    meta.set(KEY_ARCHITECTURE, origin.architecture.as_str());
    meta.set(KEY_DIGEST, origin.model_digest.as_str());
    meta.set(
        KEY_DATASETS,
        strings(&mut origin.datasets.iter().map(String::as_str)),
    );
    meta.set(KEY_N_CTX, origin.n_ctx as u64);
    meta.set(KEY_N_CHUNKS, origin.n_chunks as u64);
    let layers = analysis.routers.keys().map(|l| *l as u64).collect();
    meta.set(KEY_ROUTERS, Value::Array(Array::U64(layers)));
    for (layer, r) in &analysis.routers {
        meta.set(router_name(*layer, "tokens"), r.tokens);
        meta.set(router_name(*layer, "n_used"), r.n_used as u64);
    }
    let probes = &analysis.probes;
    set_measurements(
        &mut meta,
        PROBES,
        probes.iter().map(|p| (p.tensor.as_str(), p.ty, p.kld)),
    );
    meta.set(
        format!("{PROBES}.by_domain"),
        Value::Array(Array::F64(
            probes
                .iter()
                .flat_map(|p| p.by_domain.iter().copied())
                .collect(),
        )),
    );
    if !analysis.probe_tokens.is_empty() {
        let tokens = Array::F64(analysis.probe_tokens.clone());
        meta.set(format!("{PROBES}.tokens"), Value::Array(tokens));
    }
    if !analysis.domain_levels.is_empty() {
        let levels = Array::F64(analysis.domain_levels.clone());
        meta.set(format!("{PROBES}.level"), Value::Array(levels));
    }
    if !analysis.joint.is_empty() {
        set_joint(&mut meta, &analysis.joint);
    }
    if analysis.independent {
        meta.set(KEY_INDEPENDENT, true);
    }
    set_errors(&mut meta, &analysis.errors);
    set_sample(&mut meta, SAMPLE, &analysis.sample);
    if !analysis.checks.chunks.is_empty() {
        set_sample(&mut meta, CHECKS, &analysis.checks);
    }
    if !analysis.distributions.is_empty() {
        set_distributions(&mut meta, &analysis.distributions);
    }
    meta.set(
        KEY_DOMAINS,
        strings(&mut analysis.domains.iter().map(|d| d.name.as_str())),
    );
    for (i, domain) in analysis.domains.iter().enumerate() {
        set_routers(&mut meta, &domain_prefix(i), &domain.routers);
    }

    let mut specs = Vec::new();
    for (name, w) in &analysis.weights {
        imatrix::push_specs(&mut specs, name, w, w.n_in, w.n_mat(), GgmlType::F64)?;
    }
    for (i, domain) in analysis.domains.iter().enumerate() {
        for (name, w) in domain.weights.iter() {
            let name = format!("{}.{name}", domain_prefix(i));
            imatrix::push_specs(&mut specs, &name, w, w.n_in, w.n_mat(), GgmlType::F64)?;
        }
    }
    for (layer, r) in &analysis.routers {
        for (what, values) in router_parts(r) {
            let dims =
                Shape::new(&[values.len() as u64]).context("one dimension is always possible")?;
            specs.push(TensorSpec {
                name: router_name(*layer, what),
                dims,
                ty: GgmlType::F64,
            });
        }
    }
    for (layer, c) in &analysis.coactivation {
        specs.push(TensorSpec {
            name: router_name(*layer, TOGETHER),
            dims: square(c.n_expert)?,
            ty: GgmlType::F64,
        });
        if !c.outputs.is_empty() {
            specs.push(TensorSpec {
                name: router_name(*layer, OUTPUTS),
                dims: square(c.n_expert)?,
                ty: GgmlType::F64,
            });
        }
    }
    let layout = GgufLayout::new(&meta, specs, DEFAULT_VERSION)?;
    let mut writer = GgufWriter::new(out, &layout)?;
    for (name, w) in &analysis.weights {
        imatrix::write_weight(&mut writer, name, w, &f64_bytes(&w.counts))?;
    }
    for (i, domain) in analysis.domains.iter().enumerate() {
        for (name, w) in domain.weights.iter() {
            let name = format!("{}.{name}", domain_prefix(i));
            imatrix::write_weight(&mut writer, &name, w, &f64_bytes(&w.counts))?;
        }
    }
    for (layer, r) in &analysis.routers {
        for (what, values) in router_parts(r) {
            writer.write_tensor(&router_name(*layer, what), &f64_bytes(values))?;
        }
    }
    for (layer, c) in &analysis.coactivation {
        writer.write_tensor(&router_name(*layer, TOGETHER), &f64_bytes(&c.counts))?;
        if !c.outputs.is_empty() {
            writer.write_tensor(&router_name(*layer, OUTPUTS), &f64_bytes(&c.outputs))?;
        }
    }
    writer.finish()?;
    Ok(())
}

fn square(n: usize) -> Result<Shape> {
    Shape::new(&[n as u64, n as u64]).context("two dimensions are always possible")
}

fn router_parts(r: &RouterStats) -> [(&'static str, &Vec<f64>); 3] {
    [
        ("counts", &r.counts),
        ("gate_mass", &r.gate_mass),
        ("gate_mass_sq", &r.gate_mass_sq),
    ]
}

fn f64_bytes(values: &[f64]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// What holds of every router's figures.
fn check_router(r: &RouterStats) -> Result<()> {
    let n = r.counts.len();
    ensure!(
        n > 0 && r.n_used <= n && r.gate_mass.len() == n && r.gate_mass_sq.len() == n,
        "{n} counts, {} and {} gate weights, {} experts used",
        r.gate_mass.len(),
        r.gate_mass_sq.len(),
        r.n_used
    );
    let sane = |v: &f64| v.is_finite() && *v >= 0.0;
    ensure!(
        sane(&r.tokens) && r.counts.iter().all(sane) && r.gate_mass_sq.iter().all(sane),
        "a value is negative or not finite"
    );
    // Gate weights of a model may be negative; infinite they cannot be.
    ensure!(
        r.gate_mass.iter().all(|v| v.is_finite()),
        "a value is not finite"
    );
    Ok(())
}

/// What holds of every analysis that is saved or loaded.
fn check(analysis: &Analysis) -> Result<()> {
    let of_domains = analysis.domains.iter().flat_map(|d| d.weights.iter());
    for (name, w) in analysis.weights.iter().chain(of_domains) {
        ensure!(
            !name.is_empty() && !name.starts_with(RESERVED),
            "a tensor named '{name}' cannot be kept in an analysis"
        );
        imatrix::check_weight(name, w)?;
    }
    for (layer, r) in &analysis.routers {
        check_router(r).with_context(|| format!("router of layer {layer}"))?;
    }
    for domain in &analysis.domains {
        for (layer, r) in &domain.routers {
            let of = || format!("router of layer {layer} in domain '{}'", domain.name);
            check_router(r).with_context(of)?;
            let all = analysis.routers.get(layer);
            ensure!(
                all.is_none_or(|all| all.counts.len() == r.counts.len()),
                "{}: {} experts, and another number in all text",
                of(),
                r.counts.len()
            );
        }
    }
    for (name, matrices) in &analysis.distributions {
        ensure!(
            !matrices.is_empty()
                && matrices
                    .iter()
                    .flat_map(|m| m.to_array())
                    .all(f64::is_finite),
            "distribution of {name}: nothing, or a value that is not finite"
        );
    }
    for p in &analysis.probes {
        ensure!(
            p.kld.is_finite(),
            "measured effect of {} as {}: {} is not finite",
            p.tensor,
            p.ty,
            p.kld
        );
    }
    ensure!(
        analysis
            .probe_tokens
            .iter()
            .all(|n| n.is_finite() && *n >= 0.0),
        "measured effects: a number of tokens is negative or not finite"
    );
    ensure!(
        analysis.domain_levels.is_empty()
            || analysis.domain_levels.len() == analysis.domains.len()
                && analysis
                    .domain_levels
                    .iter()
                    .all(|l| l.is_finite() && *l > 0.0),
        "measured effects: levels of domains are not positive numbers, one for each domain"
    );
    for j in &analysis.joint {
        ensure!(
            j.kld.is_finite() && !j.tensors.is_empty(),
            "measured effect of {} tensors as {}: {} is not finite",
            j.tensors.len(),
            j.ty,
            j.kld
        );
    }
    Ok(())
}

/// Stores joint effects as parallel arrays, the names of all tensors one after another.
fn set_joint(meta: &mut Metadata, joint: &[JointProbe]) {
    let (mut types, mut names) = (GStringArray::new(), GStringArray::new());
    for j in joint {
        types.push(j.ty.name().as_bytes());
        for name in &j.tensors {
            names.push(name.as_bytes());
        }
    }
    let counts = joint.iter().map(|j| j.tensors.len() as u64).collect();
    let values = joint.iter().map(|j| j.kld).collect();
    let mut set = |what: &str, array| meta.set(format!("{JOINT}.{what}"), Value::Array(array));
    set("type", Array::Str(types));
    set("value", Array::F64(values));
    set("n_tensors", Array::U64(counts));
    set("tensor", Array::Str(names));
}

/// Reads what [`set_joint`] stored; empty where there is nothing.
fn joint(meta: &Metadata) -> Result<Vec<JointProbe>> {
    let key = |what: &str| format!("{JOINT}.{what}");
    let wrong = |what: &str| format!("key {} is missing or contradicts the others", key(what));
    if meta.get(&key("type")).is_none() {
        return Ok(Vec::new());
    }
    let strings = |what: &str| -> Result<Vec<&str>> {
        let array = meta.get_array(&key(what)).and_then(Array::as_strings);
        let each = array.with_context(|| wrong(what))?.iter();
        each.map(|s| std::str::from_utf8(s).ok().with_context(|| wrong(what)))
            .collect()
    };
    let (types, names) = (strings("type")?, strings("tensor")?);
    let Some(Array::F64(values)) = meta.get_array(&key("value")) else {
        bail!(wrong("value"))
    };
    let Some(Array::U64(counts)) = meta.get_array(&key("n_tensors")) else {
        bail!(wrong("n_tensors"))
    };
    ensure!(values.len() == types.len(), wrong("value"));
    ensure!(counts.len() == types.len(), wrong("n_tensors"));
    let mut rest = names.as_slice();
    let mut found = Vec::new();
    for ((ty, kld), n) in types.iter().zip(values).zip(counts) {
        let n = usize::try_from(*n)
            .ok()
            .filter(|n| *n > 0 && *n <= rest.len())
            .with_context(|| wrong("n_tensors"))?;
        let (own, after) = rest.split_at(n);
        rest = after;
        found.push(JointProbe {
            tensors: own.iter().map(|s| (*s).to_owned()).collect(),
            ty: ty.parse().map_err(|_| anyhow::anyhow!(wrong("type")))?,
            kld: *kld,
        });
    }
    ensure!(rest.is_empty(), wrong("tensor"));
    Ok(found)
}

/// Stores `(tensor, type, value)` as three parallel arrays under `prefix`.
fn set_measurements<'a>(
    meta: &mut Metadata,
    prefix: &str,
    items: impl Iterator<Item = (&'a str, GgmlType, f64)>,
) {
    let (mut tensors, mut types, mut values) =
        (GStringArray::new(), GStringArray::new(), Vec::new());
    for (tensor, ty, value) in items {
        tensors.push(tensor.as_bytes());
        types.push(ty.name().as_bytes());
        values.push(value);
    }
    meta.set(
        format!("{prefix}.tensor"),
        Value::Array(Array::Str(tensors)),
    );
    meta.set(format!("{prefix}.type"), Value::Array(Array::Str(types)));
    meta.set(format!("{prefix}.value"), Value::Array(Array::F64(values)));
}

fn set_sample(meta: &mut Metadata, prefix: &str, sample: &Sample) {
    let numbers = |values: &mut dyn Iterator<Item = usize>| {
        Value::Array(Array::U64(values.map(|n| n as u64).collect()))
    };
    let tokens = Array::I32(sample.chunks.concat());
    meta.set(format!("{prefix}.tokens"), Value::Array(tokens));
    let lengths = numbers(&mut sample.chunks.iter().map(Vec::len));
    meta.set(format!("{prefix}.lengths"), lengths);
    if !sample.domains.is_empty() {
        let domains = numbers(&mut sample.domains.iter().copied());
        meta.set(format!("{prefix}.domains"), domains);
    }
}

/// Reads what [`set_sample`] wrote; nothing where there is none, as in files of earlier versions.
fn sample(meta: &Metadata, prefix: &str, n_domains: usize) -> Result<Sample> {
    let key = |what: &str| format!("{prefix}.{what}");
    let wrong = |what: &str| {
        let key = key(what);
        format!("key {key} is missing or contradicts the others")
    };
    let mut sample = Sample::default();
    if meta.get(&key("tokens")).is_none() && meta.get(&key("lengths")).is_none() {
        return Ok(sample);
    }
    let Some(Array::I32(tokens)) = meta.get_array(&key("tokens")) else {
        bail!(wrong("tokens"))
    };
    let Some(Array::U64(lengths)) = meta.get_array(&key("lengths")) else {
        bail!(wrong("lengths"))
    };
    let mut rest = tokens.as_slice();
    for n in lengths {
        let chunk = usize::try_from(*n)
            .ok()
            .filter(|n| *n > 0 && *n <= rest.len())
            .with_context(|| wrong("lengths"))?;
        let (own, after) = rest.split_at(chunk);
        sample.chunks.push(own.to_vec());
        rest = after;
    }
    match meta.get_array(&key("domains")) {
        Some(Array::U64(domains)) if domains.len() == sample.chunks.len() => {
            let known = |d: &u64| usize::try_from(*d).ok().filter(|d| *d < n_domains);
            let domains: Option<Vec<usize>> = domains.iter().map(known).collect();
            sample.domains = domains.with_context(|| wrong("domains"))?;
        }
        None if meta.get(&key("domains")).is_none() => {}
        _ => bail!(wrong("domains")),
    }
    Ok(sample)
}

fn domain_prefix(i: usize) -> String {
    format!("moqa.domain.{i}")
}

/// Stores routers under `prefix`: layers, numbers of experts, of experts used and of tokens, and all experts'
/// counts, gate masses and squared gate masses one layer after another.
fn set_routers(meta: &mut Metadata, prefix: &str, routers: &BTreeMap<usize, RouterStats>) {
    let ints = |f: &dyn Fn(usize, &RouterStats) -> usize| {
        Value::Array(Array::U64(
            routers.iter().map(|(l, r)| f(*l, r) as u64).collect(),
        ))
    };
    let floats = |f: &dyn Fn(&RouterStats) -> Vec<f64>| {
        Value::Array(Array::F64(routers.values().flat_map(f).collect()))
    };
    meta.set(format!("{prefix}.layers"), ints(&|l, _| l));
    meta.set(format!("{prefix}.n_expert"), ints(&|_, r| r.counts.len()));
    meta.set(format!("{prefix}.n_used"), ints(&|_, r| r.n_used));
    meta.set(format!("{prefix}.tokens"), floats(&|r| vec![r.tokens]));
    meta.set(format!("{prefix}.counts"), floats(&|r| r.counts.clone()));
    meta.set(
        format!("{prefix}.gate_mass"),
        floats(&|r| r.gate_mass.clone()),
    );
    meta.set(
        format!("{prefix}.gate_mass_sq"),
        floats(&|r| r.gate_mass_sq.clone()),
    );
}

/// Reads what [`set_routers`] stored.
fn routers(meta: &Metadata, prefix: &str) -> Result<BTreeMap<usize, RouterStats>> {
    let wrong = |what: &str| format!("key {prefix}.{what} is missing or contradicts the others");
    let ints = |what: &str| match meta.get_array(&format!("{prefix}.{what}")) {
        Some(Array::U64(v)) => v
            .iter()
            .map(|n| usize::try_from(*n).ok().with_context(|| wrong(what)))
            .collect::<Result<Vec<_>>>(),
        _ => bail!(wrong(what)),
    };
    let floats = |what: &str| match meta.get_array(&format!("{prefix}.{what}")) {
        Some(Array::F64(v)) if v.iter().all(|x| x.is_finite()) => Ok(v.as_slice()),
        _ => Err(anyhow::anyhow!(wrong(what))),
    };
    let (layers, n_expert, n_used) = (ints("layers")?, ints("n_expert")?, ints("n_used")?);
    let tokens = floats("tokens")?;
    for (n, what) in [
        (n_expert.len(), "n_expert"),
        (n_used.len(), "n_used"),
        (tokens.len(), "tokens"),
    ] {
        ensure!(n == layers.len(), wrong(what));
    }
    let total = n_expert
        .iter()
        .try_fold(0usize, |t, n| t.checked_add(*n))
        .with_context(|| wrong("n_expert"))?;
    let whole = |what: &str| -> Result<&[f64]> {
        let v = floats(what)?;
        ensure!(v.len() == total, wrong(what));
        Ok(v)
    };
    let (counts, mass, mass_sq) = (
        whole("counts")?,
        whole("gate_mass")?,
        whole("gate_mass_sq")?,
    );
    let mut found = BTreeMap::new();
    let mut at = 0;
    for (i, layer) in layers.iter().enumerate() {
        let range = at..at + n_expert[i];
        at = range.end;
        let router = RouterStats {
            n_used: n_used[i],
            tokens: tokens[i],
            counts: counts[range.clone()].to_vec(),
            gate_mass: mass[range.clone()].to_vec(),
            gate_mass_sq: mass_sq[range].to_vec(),
        };
        ensure!(found.insert(*layer, router).is_none(), wrong("layers"));
    }
    Ok(found)
}

/// Stores errors: the tensors' names and numbers of matrices, the energies of all matrices one after another,
/// and for each type, by its number in `types`, the tensor's number and its matrices' errors.
fn set_errors(meta: &mut Metadata, table: &ErrorTable) {
    let (mut names, mut n_mat, mut energy) = (GStringArray::new(), Vec::new(), Vec::new());
    let (mut entries, mut values) = (Vec::new(), Vec::new());
    for (i, (name, t)) in table.iter().enumerate() {
        names.push(name.as_bytes());
        n_mat.push(t.energy.len() as u64);
        energy.extend_from_slice(&t.energy);
        for (ty, of) in &t.by_type {
            entries.extend([i as u64, u64::from(ty.id())]);
            values.extend_from_slice(of);
        }
    }
    meta.set(format!("{ERRORS}.tensor"), Value::Array(Array::Str(names)));
    meta.set(format!("{ERRORS}.n_mat"), Value::Array(Array::U64(n_mat)));
    meta.set(format!("{ERRORS}.energy"), Value::Array(Array::F64(energy)));
    meta.set(format!("{ERRORS}.entry"), Value::Array(Array::U64(entries)));
    meta.set(format!("{ERRORS}.value"), Value::Array(Array::F64(values)));
}

/// Reads what [`set_errors`] stored.
fn errors(meta: &Metadata) -> Result<ErrorTable> {
    let key = |what: &str| format!("{ERRORS}.{what}");
    let wrong = |what: &str| format!("key {} is missing or contradicts the others", key(what));
    let names = meta
        .get_array(&key("tensor"))
        .and_then(Array::as_strings)
        .with_context(|| wrong("tensor"))?;
    let numbers = |what: &str| match meta.get_array(&key(what)) {
        Some(Array::U64(v)) => Ok(v.as_slice()),
        _ => Err(anyhow::anyhow!(wrong(what))),
    };
    let floats = |what: &str| match meta.get_array(&key(what)) {
        Some(Array::F64(v)) if v.iter().all(|x| x.is_finite() && *x >= 0.0) => Ok(v.as_slice()),
        _ => Err(anyhow::anyhow!(wrong(what))),
    };
    let (n_mat, entries) = (numbers("n_mat")?, numbers("entry")?);
    let (mut energy, mut values) = (floats("energy")?, floats("value")?);
    ensure!(n_mat.len() == names.len(), wrong("n_mat"));
    let mut tensors: Vec<(&str, TensorErrors)> = Vec::new();
    for (name, &n) in names.iter().zip(n_mat) {
        let name = std::str::from_utf8(name)
            .ok()
            .with_context(|| wrong("tensor"))?;
        let n = usize::try_from(n)
            .ok()
            .filter(|n| *n <= energy.len())
            .with_context(|| wrong("energy"))?;
        let (own, rest) = energy.split_at(n);
        energy = rest;
        tensors.push((
            name,
            TensorErrors {
                energy: own.to_vec(),
                ..TensorErrors::default()
            },
        ));
    }
    ensure!(energy.is_empty(), wrong("energy"));
    for entry in entries.chunks(2) {
        let &[tensor, ty] = entry else {
            bail!(wrong("entry"))
        };
        let ty = u32::try_from(ty)
            .ok()
            .and_then(GgmlType::from_id)
            .with_context(|| wrong("entry"))?;
        let tensor = usize::try_from(tensor)
            .ok()
            .and_then(|i| tensors.get_mut(i))
            .with_context(|| wrong("entry"))?;
        let n = tensor.1.energy.len();
        ensure!(n <= values.len(), wrong("value"));
        let (own, rest) = values.split_at(n);
        values = rest;
        tensor.1.by_type.insert(ty, own.to_vec());
    }
    ensure!(values.is_empty(), wrong("value"));
    let mut table = ErrorTable::default();
    for (name, errors) in tensors {
        table.insert(name, errors);
    }
    Ok(table)
}

/// Stores distributions: the tensors' names and numbers of matrices, and the figures of all matrices one after
/// another, each in the order of [`MatrixDistribution`]'s fields.
fn set_distributions(meta: &mut Metadata, table: &Distributions) {
    let names: GStringArray = table.keys().map(|n| n.as_bytes()).collect();
    let n_mat = table.values().map(|m| m.len() as u64).collect();
    let values = table.values().flatten().flat_map(|m| m.to_array());
    for (what, array) in [
        ("tensor", Array::Str(names)),
        ("n_mat", Array::U64(n_mat)),
        ("value", Array::F64(values.collect())),
    ] {
        meta.set(format!("{DISTRIBUTION}.{what}"), Value::Array(array));
    }
}

/// Reads what [`set_distributions`] stored, if it is there.
fn distributions(meta: &Metadata) -> Result<Distributions> {
    let key = |what: &str| format!("{DISTRIBUTION}.{what}");
    let wrong = |what: &str| format!("key {} is missing or contradicts the others", key(what));
    let mut table = Distributions::new();
    if meta.get(&key("tensor")).is_none() {
        return Ok(table);
    }
    let names = meta
        .get_array(&key("tensor"))
        .and_then(Array::as_strings)
        .with_context(|| wrong("tensor"))?;
    let Some(Array::U64(n_mat)) = meta.get_array(&key("n_mat")) else {
        bail!(wrong("n_mat"))
    };
    let Some(Array::F64(values)) = meta.get_array(&key("value")) else {
        bail!(wrong("value"))
    };
    ensure!(names.len() == n_mat.len(), wrong("n_mat"));
    ensure!(values.iter().all(|v| v.is_finite()), wrong("value"));
    let (matrices, rest) = values.as_chunks::<{ MatrixDistribution::N }>();
    ensure!(rest.is_empty(), wrong("value"));
    let mut matrices = matrices.iter().map(|v| MatrixDistribution::from_array(*v));
    for (name, n) in names.iter().zip(n_mat) {
        let name = std::str::from_utf8(name)
            .ok()
            .with_context(|| wrong("tensor"))?;
        let n = usize::try_from(*n)
            .ok()
            .filter(|n| *n <= matrices.len())
            .with_context(|| wrong("n_mat"))?;
        let own: Vec<MatrixDistribution> = matrices.by_ref().take(n).collect();
        ensure!(
            !own.is_empty() && table.insert(name.to_owned(), own).is_none(),
            wrong("tensor")
        );
    }
    ensure!(matrices.len() == 0, wrong("value"));
    Ok(table)
}

/// Reads what [`set_measurements`] stored.
fn measurements<'a>(meta: &'a Metadata, prefix: &str) -> Result<Vec<(&'a str, GgmlType, f64)>> {
    let wrong = |what: &str| format!("key {prefix}.{what} is missing or of the wrong type");
    let strings = |what: &str| {
        let array = meta.get_array(&format!("{prefix}.{what}"));
        array
            .and_then(Array::as_strings)
            .with_context(|| wrong(what))
    };
    let (tensors, types) = (strings("tensor")?, strings("type")?);
    let Some(Array::F64(values)) = meta.get_array(&format!("{prefix}.value")) else {
        bail!("{}", wrong("value"))
    };
    ensure!(
        tensors.len() == types.len() && tensors.len() == values.len(),
        "the arrays of {prefix} have {}, {} and {} elements",
        tensors.len(),
        types.len(),
        values.len()
    );
    let text = |s: &'a [u8], what: &str| std::str::from_utf8(s).ok().with_context(|| wrong(what));
    tensors
        .iter()
        .zip(types.iter())
        .zip(values)
        .map(|((tensor, ty), value)| {
            let ty = text(ty, "type")?
                .parse::<GgmlType>()
                .with_context(|| format!("key {prefix}.type"))?;
            ensure!(
                value.is_finite(),
                "key {prefix}.value: {value} is not finite"
            );
            Ok((text(tensor, "tensor")?, ty, *value))
        })
        .collect()
}

fn parse(gguf: &Gguf) -> Result<Analysis> {
    const ADVICE: &str = "the file is damaged, analyze the model again";
    let meta = &gguf.metadata;
    match meta.get(KEY_VERSION) {
        Some(Value::U32(VERSION)) => {}
        Some(Value::U32(v)) => bail!(
            "key {KEY_VERSION} is {v}, this program reads {VERSION}; update moqa or analyze the model again"
        ),
        _ => bail!("key {KEY_VERSION} is missing or not a u32; {ADVICE}"),
    }
    let wrong = |key: &str| format!("key {key} is missing or of the wrong type; {ADVICE}");
    let size = |key: &str| -> Result<usize> {
        let n = meta.get_u64(key).and_then(|n| usize::try_from(n).ok());
        n.with_context(|| wrong(key))
    };
    let text = |key: &str| meta.get_str(key).with_context(|| wrong(key));
    let texts = |key: &str| -> Result<Vec<&str>> {
        let array = meta
            .get_array(key)
            .and_then(Array::as_strings)
            .with_context(|| wrong(key))?;
        array
            .iter()
            .map(|s| std::str::from_utf8(s).ok().with_context(|| wrong(key)))
            .collect()
    };

    let mut analysis = Analysis::default();
    analysis.origin.architecture = text(KEY_ARCHITECTURE)?.to_owned();
    analysis.origin.model_digest = text(KEY_DIGEST)?.to_owned();
    analysis.origin.datasets = texts(KEY_DATASETS)?
        .into_iter()
        .map(str::to_owned)
        .collect();
    analysis.origin.n_ctx = size(KEY_N_CTX)?;
    analysis.origin.n_chunks = size(KEY_N_CHUNKS)?;
    analysis.weights = imatrix::gguf_weights(gguf, "", GgmlType::F64)?;

    let Some(Array::U64(layers)) = meta.get_array(KEY_ROUTERS) else {
        bail!(wrong(KEY_ROUTERS))
    };
    for layer in layers {
        let layer = usize::try_from(*layer)
            .ok()
            .with_context(|| wrong(KEY_ROUTERS))?;
        let values = |what: &str| -> Result<Vec<f64>> {
            let name = router_name(layer, what);
            let tensor = gguf
                .tensor(&name)
                .with_context(|| format!("tensor {name} is missing; {ADVICE}"))?;
            imatrix::read_f64(gguf, tensor)
        };
        let tokens_key = router_name(layer, "tokens");
        let Some(&Value::F64(tokens)) = meta.get(&tokens_key) else {
            bail!(wrong(&tokens_key))
        };
        let router = RouterStats {
            n_used: size(&router_name(layer, "n_used"))?,
            tokens,
            counts: values("counts")?,
            gate_mass: values("gate_mass")?,
            gate_mass_sq: values("gate_mass_sq")?,
        };
        ensure!(
            analysis.routers.insert(layer, router).is_none(),
            "key {KEY_ROUTERS} names layer {layer} twice; {ADVICE}"
        );
    }

    for (i, name) in texts(KEY_DOMAINS)?.into_iter().enumerate() {
        let prefix = domain_prefix(i);
        let routers = routers(meta, &prefix).context(ADVICE)?;
        // Absent from files of earlier versions.
        let weights = imatrix::gguf_weights(gguf, &format!("{prefix}."), GgmlType::F64)?;
        analysis.domains.push(Domain {
            name: name.to_owned(),
            routers,
            weights: weights.into(),
        });
    }
    let by_domain_key = format!("{PROBES}.by_domain");
    let Some(Array::F64(by_domain)) = meta.get_array(&by_domain_key) else {
        bail!(wrong(&by_domain_key))
    };
    let found = measurements(meta, PROBES).context(ADVICE)?;
    let each = by_domain.len() / found.len().max(1);
    ensure!(
        each * found.len() == by_domain.len()
            && (each == 0 || each == analysis.domains.len())
            && by_domain.iter().all(|k| k.is_finite()),
        "key {by_domain_key} contradicts the others; {ADVICE}"
    );
    for (i, (tensor, ty, kld)) in found.into_iter().enumerate() {
        let (tensor, by_domain) = (
            tensor.to_owned(),
            by_domain[i * each..(i + 1) * each].to_vec(),
        );
        analysis.probes.push(Probe {
            tensor,
            ty,
            kld,
            by_domain,
        });
    }
    let numbers = |what: &str| -> Result<Vec<f64>> {
        let key = format!("{PROBES}.{what}");
        match meta.get_array(&key) {
            Some(Array::F64(each)) => Ok(each.clone()),
            // Absent from files of earlier versions.
            None if meta.get(&key).is_none() => Ok(Vec::new()),
            _ => bail!(wrong(&key)),
        }
    };
    analysis.probe_tokens = numbers("tokens")?;
    analysis.domain_levels = numbers("level")?;
    analysis.joint = joint(meta).context(ADVICE)?;
    analysis.independent = meta.get_bool(KEY_INDEPENDENT).unwrap_or(false);
    analysis.errors = errors(meta).context(ADVICE)?;
    analysis.distributions = distributions(meta).context(ADVICE)?;

    for layer in analysis.routers.keys() {
        let name = router_name(*layer, TOGETHER);
        if let Some(tensor) = gguf.tensor(&name) {
            let counts = imatrix::read_f64(gguf, tensor)?;
            let n_expert = tensor.ne(0) as usize;
            ensure!(
                n_expert.checked_mul(n_expert) == Some(counts.len())
                    && counts.iter().all(|c| c.is_finite() && *c >= 0.0),
                "tensor {name}: not a table of tokens by pairs of experts; {ADVICE}"
            );
            let name = router_name(*layer, OUTPUTS);
            let outputs = match gguf.tensor(&name) {
                Some(tensor) => imatrix::read_f64(gguf, tensor)?,
                None => Vec::new(),
            };
            ensure!(
                (outputs.is_empty() || outputs.len() == counts.len())
                    && outputs.iter().all(|x| x.is_finite()),
                "tensor {name}: not a table of pairs of experts; {ADVICE}"
            );
            analysis.coactivation.insert(
                *layer,
                Coactivation {
                    n_expert,
                    counts,
                    outputs,
                },
            );
        }
    }
    // Absent from files of earlier versions.
    analysis.sample = sample(meta, SAMPLE, 0).context(ADVICE)?;
    analysis.checks = sample(meta, CHECKS, analysis.domains.len()).context(ADVICE)?;

    let of_domains = analysis.domains.iter().flat_map(|d| d.weights.values());
    let expected: usize = analysis
        .weights
        .values()
        .chain(of_domains)
        .map(|w| 2 + usize::from(!w.sum.is_empty()))
        .sum::<usize>()
        + 3 * analysis.routers.len()
        + analysis
            .coactivation
            .values()
            .map(|c| 1 + usize::from(!c.outputs.is_empty()))
            .sum::<usize>();
    ensure!(
        expected == gguf.tensors.len(),
        "{} tensors, of which {expected} belong to an analysis; {ADVICE}",
        gguf.tensors.len()
    );
    check(&analysis).context(ADVICE)?;
    Ok(analysis)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn joint_effects_are_kept_and_checked() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.moqa");
        let group = |names: &[&str], ty, kld| JointProbe {
            tensors: names.iter().map(|n| (*n).to_owned()).collect(),
            ty,
            kld,
        };
        let domain = |name: &str| Domain {
            name: name.to_owned(),
            ..Domain::default()
        };
        let mut analysis = Analysis {
            domains: vec![domain("one"), domain("two")],
            joint: vec![
                group(&["a_exps", "b_exps"], GgmlType::Q3_K, 0.5),
                group(&["a_exps", "c_exps", "b_exps"], GgmlType::Q5_K, 0.25),
            ],
            independent: true,
            probe_tokens: vec![512.0, 1024.0],
            domain_levels: vec![0.5, 2.0],
            checks: Sample {
                chunks: vec![vec![3, 1], vec![4], vec![1, 5, 9]],
                domains: vec![0, 0, 1],
            },
            ..Analysis::default()
        };
        save(&path, &analysis).unwrap();
        assert_eq!(load(&path).unwrap(), analysis);
        for domains in [vec![0, 1], vec![0, 0, 2]] {
            let mut meta = Gguf::open(&path).unwrap().metadata;
            meta.set(
                format!("{CHECKS}.domains"),
                Value::Array(Array::U64(domains)),
            );
            let message = sample(&meta, CHECKS, 2).unwrap_err().to_string();
            assert!(message.contains("moqa.checks.domains"), "{message}");
        }

        let damaged = |what: &str, array: Array| {
            let mut meta = Gguf::open(&path).unwrap().metadata;
            meta.set(format!("{JOINT}.{what}"), Value::Array(array));
            joint(&meta).unwrap_err().to_string()
        };
        for (what, array) in [
            ("n_tensors", Array::U64(vec![2, u64::MAX])),
            ("n_tensors", Array::U64(vec![2, 0])),
            ("n_tensors", Array::U64(vec![5])),
            ("value", Array::F64(vec![0.1])),
            ("tensor", Array::U64(vec![1])),
        ] {
            let message = damaged(what, array);
            assert!(message.contains(&format!("{JOINT}.{what}")), "{message}");
        }
        // Names that no group claims.
        let left = damaged("n_tensors", Array::U64(vec![2, 2]));
        assert!(left.contains("moqa.joint.tensor"), "{left}");
        analysis.joint[1].kld = f64::NAN;
        assert!(save(&path, &analysis).is_err());
        analysis.joint.clear();
        for levels in [vec![1.0], vec![1.0, 0.0], vec![1.0, f64::NAN]] {
            analysis.domain_levels = levels;
            let message = format!("{:#}", save(&path, &analysis).unwrap_err());
            assert!(message.contains("levels of domains"), "{message}");
        }
    }

    #[test]
    fn distributions_are_kept_and_may_be_missing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.moqa");
        let one = |v: f64| MatrixDistribution::from_array([v, v + 1.0, v + 2.0, v + 3.0, 0.125]);
        let mut analysis = Analysis {
            distributions: Distributions::from([
                ("blk.0.attn_q.weight".into(), vec![one(-1.2)]),
                ("blk.0.ffn_up_exps.weight".into(), vec![one(0.5), one(7.0)]),
            ]),
            ..Analysis::default()
        };
        save(&path, &analysis).unwrap();
        assert_eq!(load(&path).unwrap(), analysis);

        let damaged = |change: fn(&mut Metadata)| {
            let mut meta = Gguf::open(&path).unwrap().metadata;
            change(&mut meta);
            distributions(&meta).unwrap_err().to_string()
        };
        let key = |what: &str| format!("{DISTRIBUTION}.{what}");
        let counts = damaged(|m| {
            m.set(
                "moqa.distribution.n_mat",
                Value::Array(Array::U64(vec![1, u64::MAX])),
            );
        });
        assert!(counts.contains(&key("n_mat")), "{counts}");
        let short = damaged(|m| {
            m.set(
                "moqa.distribution.value",
                Value::Array(Array::F64(vec![0.0; 14])),
            );
        });
        assert!(short.contains(&key("value")), "{short}");
        let nan = damaged(|m| {
            m.set(
                "moqa.distribution.value",
                Value::Array(Array::F64(vec![f64::NAN; 15])),
            );
        });
        assert!(nan.contains(&key("value")), "{nan}");

        // A file without them, as older versions wrote it.
        analysis.distributions.clear();
        save(&path, &analysis).unwrap();
        assert!(
            Gguf::open(&path)
                .unwrap()
                .metadata
                .get(&key("tensor"))
                .is_none()
        );
        assert_eq!(load(&path).unwrap(), analysis);
    }
}
