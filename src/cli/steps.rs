//! Steps that several commands share.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::{BudgetArgs, DataArgs, FolderArgs, Global, StrategyArgs};
use crate::analysis::{
    self, Analysis, CollectOptions, Corpus, Domain, Importance, Probe, Sensitivity,
    SensitivityOptions, Stage, Unreached, chunk_tokens, says_little,
};
use crate::encode::{EncodeReport, Refit};
use crate::evaluate::{EvalOptions, EvalReport, LogitsWriter, Reference, evaluate};
use crate::gguf::{GgmlType, Gguf, TensorInfo};
use crate::hf;
use crate::mixed;
use crate::model::{self, ModelView};
use crate::output::refuse_overwriting;
use crate::plan::{Candidates, Measured, Plan, PlanInputs, Scenario, plan_bytes, plan_for};
use crate::progress::Progress;
use crate::refit::{Judged, MeasuredFares, RefitOptions, RefitText, Refitter};
use crate::runtime::{MemoryFile, Model, ModelOptions, Preset, preset_types};

/// Values of a tensor that are quantized to measure its error in a type.
const ERROR_SAMPLE: u64 = 1 << 16;
/// Tokens of the calibration text that an analysis keeps, for the refit.
const SAMPLE_TOKENS: usize = 1 << 15;
/// Tokens on which one tensor's effect is measured.
const PROBE_TOKENS: std::ops::RangeInclusive<usize> = 512..=8192;

/// An opened model.
pub(super) struct Source {
    pub gguf: Gguf,
    pub view: ModelView,
    pub digest: String,
}

impl Source {
    /// Refuses a target that is the model itself, or another of the files that are read.
    pub(super) fn refuse_overwriting<'a>(
        &'a self,
        target: &Path,
        read: impl IntoIterator<Item = &'a PathBuf>,
    ) -> Result<()> {
        let read = read.into_iter().map(PathBuf::as_path);
        let model = self.gguf.paths().into_iter();
        refuse_overwriting(target, model.chain(read))
    }
}

/// Opens and understands a model: a GGUF file, or a Hugging Face folder, whose tensors are then made when they
/// are read.
pub(super) fn open(path: &Path, folder: &FolderArgs, global: &Global) -> Result<Source> {
    let gguf = if path.is_dir() {
        open_folder(path, folder, global)?
    } else {
        Gguf::open(path)?
    };
    mixed::refuse(&gguf).with_context(|| format!("{}", path.display()))?;
    let view = ModelView::new(&gguf).with_context(|| format!("{}", path.display()))?;
    let digest = model::digest(&gguf)?;
    Ok(Source { gguf, view, digest })
}

/// Loads a model into llama.cpp.
pub(super) fn load(gguf: &Gguf, options: &ModelOptions) -> Result<Model> {
    model::check_runnable(gguf).with_context(|| format!("{}", gguf.paths()[0].display()))?;
    Model::load_source(gguf, options)
}

/// Opens a GGUF file to be run as it is: of a mixed one, what it holds in stock types.
pub(super) fn open_to_run(path: &Path, global: &Global) -> Result<Gguf> {
    let gguf = Gguf::open(path)?;
    if !mixed::is_guarded(&gguf.metadata) {
        return Ok(gguf);
    }
    global.progress().note(format!(
        "note: {} is a mixed file; its experts are decoded to f16 in memory to be measured",
        path.display()
    ));
    mixed::plain(gguf, GgmlType::F16)
}

/// Opens a Hugging Face folder and prints what the user should know about it.
pub(super) fn open_folder(dir: &Path, folder: &FolderArgs, global: &Global) -> Result<Gguf> {
    let converted = hf::open(dir, &folder.options())?;
    for note in &converted.notes {
        global.progress().note(note);
    }
    Ok(converted.gguf)
}

/// The analysis that the arguments ask for: read, made from imatrix files, measured, or several of these.
/// `probes` says whether effects on the output are wanted.
pub(super) fn analysis(
    source: &Source,
    args: &DataArgs,
    probes: bool,
    global: &Global,
) -> Result<Analysis> {
    let progress = global.progress();
    let mut analysis = Analysis::default();
    if let Some(path) = &args.analysis {
        analysis = load_analysis(path, source, &progress)?;
    }
    for path in &args.imatrix {
        add_imatrix(&mut analysis, path, &source.gguf, &progress)?;
    }
    let own_pass = analysis.weights.is_empty() || !args.text.is_empty();
    let measure = probes && args.sensitivity > 0.0 && analysis.probes.is_empty();
    if own_pass || measure {
        let corpus = if args.text.is_empty() {
            Corpus::built_in()
        } else {
            Corpus::read(&args.text)?
        };
        let model = load(&source.gguf, &ModelOptions::default())?;
        let chunks = Chunks::of(&model, &corpus, args)?;
        if own_pass {
            let measured = collect(source, &model, &corpus, &chunks, global)?;
            analysis.merge(&measured)?;
        }
        if measure {
            sensitivity(
                source,
                &model,
                &mut analysis,
                &chunks,
                args.sensitivity,
                global,
            )?;
        }
    }
    if !args.stages().all() {
        analysis = args.stages().apply(&analysis);
    }
    if probes {
        complete_errors(source, &mut analysis, &Candidates::default(), global)?;
        let (gguf, view) = (&source.gguf, &source.view);
        analysis::complete_distributions(gguf, view, &mut analysis, global.n_threads(), &progress)?;
    }
    Ok(analysis)
}

/// Reads an analysis, and says what of it is not of the model.
pub(super) fn load_analysis(path: &Path, source: &Source, progress: &Progress) -> Result<Analysis> {
    let mut analysis = analysis::load(path)?;
    if !analysis.origin.model_digest.is_empty() && analysis.origin.model_digest != source.digest {
        progress.note(format!(
            "warning: {} was made for another model than {}",
            path.display(),
            source.gguf.paths()[0].display()
        ));
    }
    fit_to_model(&mut analysis, path, &source.gguf, progress)?;
    Ok(analysis)
}

/// Reads a plan for the model, and says so if it was made for another.
pub(super) fn load_plan(path: &Path, source: &Source, progress: &Progress) -> Result<Plan> {
    let mut plan = Plan::read(path)?;
    plan.fit_to_model(&source.gguf)?;
    if !plan.model_digest.is_empty() && plan.model_digest != source.digest {
        progress
            .note("warning: the plan was made for another model; its types are used as they are");
    }
    Ok(plan)
}

/// Checks statistics of a file against the model, and says what is left out.
fn fit_to_model(read: &mut Analysis, path: &Path, model: &Gguf, progress: &Progress) -> Result<()> {
    let left_out = analysis::imatrix::fit_to_model(read, model)
        .with_context(|| format!("{}", path.display()))?;
    for name in left_out {
        progress.note(format!(
            "warning: {}: statistics of {name}, which the model does not have, are left out",
            path.display()
        ));
    }
    Ok(())
}

/// Adds an imatrix file to an analysis: fitted to the model first, for the older form does not say what is an expert.
pub(super) fn add_imatrix(
    analysis: &mut Analysis,
    path: &Path,
    model: &Gguf,
    progress: &Progress,
) -> Result<()> {
    let mut read = analysis::imatrix::read(path)?;
    fit_to_model(&mut read, path, model, progress)?;
    analysis
        .merge(&read)
        .with_context(|| format!("{}: cannot be added", path.display()))
}

/// A text's chunks, domain after domain.
struct Chunks {
    /// Labels of the domains; one without a label when the text has no domains.
    labels: Vec<String>,
    /// The chunks of each domain, of one length.
    by_domain: Vec<Vec<Vec<i32>>>,
}

impl Chunks {
    fn of(model: &Model, corpus: &Corpus, args: &DataArgs) -> Result<Self> {
        let (mut labels, mut by_domain) = (Vec::new(), Vec::new());
        let domains = corpus.domains();
        for (label, text) in &domains {
            let mut chunks = chunk_tokens(model.vocab(), text, args.ctx as usize)
                .with_context(|| format!("the text of domain '{label}'"))?;
            if let Some(n) = args.chunks {
                chunks.truncate((n as usize).div_ceil(domains.len()));
            }
            labels.push(label.clone());
            by_domain.push(chunks);
        }
        Ok(Self { labels, by_domain })
    }

    fn n_tokens(&self) -> usize {
        self.by_domain.iter().flatten().map(Vec::len).sum()
    }

    /// `n` chunks spread evenly over the text, at least one of each domain, and the domain of each.
    fn sample(&self, n: usize) -> (Vec<Vec<i32>>, Vec<usize>) {
        let total: usize = self.by_domain.iter().map(Vec::len).sum();
        self.spread(|chunks| ((n * chunks.len()) as f64 / total.max(1) as f64).round() as usize)
    }

    /// As [`Chunks::sample`], of about `n_tokens` in all, as many from each domain as there are.
    fn even_sample(&self, n_tokens: usize) -> (Vec<Vec<i32>>, Vec<usize>) {
        let each = n_tokens / self.by_domain.len().max(1);
        self.spread(|chunks| each / chunks[0].len().max(1))
    }

    /// As many chunks of each domain as `share` says, at least one, spread evenly over its text.
    fn spread(&self, share: impl Fn(&[Vec<i32>]) -> usize) -> (Vec<Vec<i32>>, Vec<usize>) {
        let (mut sample, mut domains) = (Vec::new(), Vec::new());
        for (d, chunks) in self.by_domain.iter().enumerate() {
            let n = share(chunks).clamp(1, chunks.len());
            sample.extend((0..n).map(|i| chunks[i * chunks.len() / n].clone()));
            domains.extend(std::iter::repeat_n(d, n));
        }
        (sample, domains)
    }
}

/// The pass over the calibration text, domain by domain.
fn collect(
    source: &Source,
    model: &Model,
    corpus: &Corpus,
    chunks: &Chunks,
    global: &Global,
) -> Result<Analysis> {
    let n_chunks = chunks.by_domain.iter().map(|c| c.len() as u64).sum();
    let bar = global
        .progress()
        .bar("calibration pass", n_chunks, "chunks");
    let mut all = Analysis::default();
    let several = chunks.labels.len() > 1;
    for (label, chunks) in chunks.labels.iter().zip(&chunks.by_domain) {
        let options = CollectOptions {
            n_ctx: chunks[0].len(),
            n_threads: global.n_threads(),
        };
        let mut measured = analysis::collect(model, chunks, &options, &bar)?;
        let mut domain = Domain {
            name: label.clone(),
            routers: measured.routers.clone(),
            ..Domain::default()
        };
        if several {
            domain.keep_channels(&measured.weights);
        }
        measured.domains.push(domain);
        all.merge(&measured)?;
    }
    bar.finish();
    let longest = chunks.by_domain.iter().flatten().map(Vec::len).max();
    let n = SAMPLE_TOKENS / longest.unwrap_or(1).max(1);
    all.sample.chunks = chunks.sample(n.max(1)).0;
    if several {
        (all.checks.chunks, all.checks.domains) = chunks.even_sample(2 * LEVEL_TOKENS);
    }
    all.origin.architecture.clone_from(&source.view.arch);
    all.origin.model_digest.clone_from(&source.digest);
    all.origin.datasets.clone_from(&corpus.names);
    Ok(all)
}

/// Measures the errors of candidate types that the analysis does not hold yet.
fn complete_errors(
    source: &Source,
    analysis: &mut Analysis,
    candidates: &Candidates,
    global: &Global,
) -> Result<()> {
    let importance = Importance::new(analysis, Unreached::default());
    let mut missing = PlanInputs::choices(&source.gguf, &source.view, &importance, candidates);
    for (tensor, types) in &mut missing {
        types.retain(|ty| !analysis.errors.contains(&tensor.name, *ty));
    }
    missing.retain(|(_, types)| !types.is_empty());
    if missing.is_empty() {
        return Ok(());
    }
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(global.n_threads())
        .build()?;
    let progress = global.progress();
    let errors = analysis::measure_errors(
        &source.gguf,
        &missing,
        &importance,
        ERROR_SAMPLE,
        &pool,
        &progress,
    )?;
    for (tensor, _) in &missing {
        if let Some(errors) = errors.tensor(&tensor.name) {
            analysis.errors.insert(&tensor.name, errors.clone());
        }
    }
    Ok(())
}

/// Types in which tensors are probed: about 3.4, 2 and 5.5 bits, so that the types between and beside them
/// can be judged, the one that matters most first; for rows that k-quants cannot hold, their neighbours among the types of 32.
fn probe_types(tensor: &TensorInfo, known: bool) -> Vec<GgmlType> {
    use GgmlType::*;
    let low = if known { IQ2_XS } else { Q2_K };
    let all = if Q3_K.row_bytes(tensor.ne(0)).is_some() {
        vec![Q3_K, low, Q5_K]
    } else {
        vec![Q4_0, Q5_0]
    };
    all.into_iter()
        .filter(|ty| ty.row_bytes(tensor.ne(0)).is_some() && ty.bpw() < tensor.ty.bpw())
        .collect()
}

/// Measures the effect of quantizing on the output, within `effort` evaluated tokens per calibration token.
fn sensitivity(
    source: &Source,
    model: &Model,
    analysis: &mut Analysis,
    chunks: &Chunks,
    effort: f64,
    global: &Global,
) -> Result<()> {
    let importance = Importance::new(analysis, Unreached::default());
    // By layer: each tensor with its types, the middle one first.
    let mut by_layer: BTreeMap<Option<usize>, Vec<(String, Vec<GgmlType>)>> = BTreeMap::new();
    for t in source.view.tensors.iter().filter(|t| t.quantizable) {
        let tensor = &source.gguf.tensors[t.index];
        let known = importance
            .of(&tensor.name, 0, tensor.ne(0) as usize)
            .is_some();
        let types = probe_types(tensor, known);
        by_layer
            .entry(t.layer)
            .or_default()
            .push((tensor.name.clone(), types));
    }
    let len = chunks
        .by_domain
        .iter()
        .flatten()
        .map(Vec::len)
        .max()
        .unwrap_or(1);
    let wanted: usize = by_layer.values().flatten().map(|t| t.1.len()).sum();
    let total_tokens = chunks.n_tokens() as f64 * effort;
    let tokens = (total_tokens / wanted.max(1) as f64)
        .clamp(*PROBE_TOKENS.start() as f64, *PROBE_TOKENS.end() as f64)
        .min(chunks.n_tokens() as f64);
    let (subset, domains) = chunks.sample(((tokens / len as f64) as usize).max(1));
    let sampled: usize = subset.iter().map(Vec::len).sum();
    let affordable = (total_tokens / sampled as f64) as usize;
    let pairs = choose_probes(by_layer, affordable);
    if pairs.len() < wanted {
        global.progress().note(format!(
            "measuring {} of {wanted} effects; others are judged by their neighbours (--sensitivity sets the effort)",
            pairs.len()
        ));
    }
    let options = SensitivityOptions {
        n_threads: global.n_threads(),
        first_output: len / 8,
        domains,
        kept: 1024,
    };
    analysis.probe_tokens = vec![0.0; chunks.labels.len()];
    for (chunk, d) in subset.iter().zip(&options.domains) {
        analysis.probe_tokens[*d] += chunk.len().saturating_sub(options.first_output) as f64;
    }
    let progress = global.progress();
    let mut bench = Sensitivity::new(model, &source.gguf, &importance, &subset, &options)?;
    analysis.probes = bench.measure(&pairs, &progress)?;
    analysis.domain_levels = Vec::new();
    let groups = joint_groups(&source.gguf, &analysis.probes);
    analysis.joint = bench.measure_joint(&groups, &progress)?;
    drop(bench);
    let tokens = (total_tokens * LEVEL_EFFORT / 2.0).min(LEVEL_TOKENS as f64);
    let usual = |g: &&(Vec<String>, GgmlType)| (g.1.bpw() - USUAL_BPW).abs();
    if chunks.labels.len() > 1
        && let Some(group) = groups.iter().min_by(|a, b| usual(a).total_cmp(&usual(b)))
    {
        let (much, domains) = chunks.even_sample(tokens as usize);
        let options = SensitivityOptions::by_domain(&much, domains, options.n_threads);
        let mut bench = Sensitivity::new(model, &source.gguf, &importance, &much, &options)?;
        let each = bench.measure_by_domain(group)?;
        analysis.domain_levels = levels(&each, &analysis.probe_tokens);
    }
    // The text may be other than the analysis's.
    analysis.number_effects(&chunks.labels);
    Ok(())
}

/// Divergences of domains as multiples of their mean in a text that has `tokens` of each; empty where one is nothing.
fn levels(each: &[f64], tokens: &[f64]) -> Vec<f64> {
    let all: f64 = tokens.iter().sum();
    let mean = each
        .iter()
        .zip(tokens)
        .map(|(k, n)| k * n / all)
        .sum::<f64>();
    if !(mean > 0.0 && each.iter().all(|k| *k > 0.0)) {
        return Vec::new();
    }
    each.iter().map(|k| k / mean).collect()
}

/// Tokens at most on which effects and plans are measured by domain, beside as many on which plans are fitted, and the part
/// of the effort that it may take.
const LEVEL_TOKENS: usize = 65536;
const LEVEL_EFFORT: f64 = 0.25;
/// It is measured in the probes' type nearest to this size.
pub(super) const USUAL_BPW: f64 = 3.5;

/// Bytes of quantized experts that are exchanged at once to see what they do together.
const JOINT_BYTES: u64 = 4 << 30;

/// The expert tensors that were probed, for each type in which they were; as many layers as [`JOINT_BYTES`] hold.
fn joint_groups(source: &Gguf, probes: &[Probe]) -> Vec<(Vec<String>, GgmlType)> {
    let mut groups: BTreeMap<GgmlType, (Vec<String>, u64)> = BTreeMap::new();
    for p in probes {
        let Some(tensor) = source.tensor(&p.tensor).filter(|t| mixed::can_mix(t)) else {
            continue;
        };
        let group = groups.entry(p.ty).or_default();
        let bytes = p.ty.row_bytes(tensor.ne(0)).unwrap_or(0) * tensor.n_rows();
        if group.1 + bytes <= JOINT_BYTES {
            group.0.push(p.tensor.clone());
            group.1 += bytes;
        }
    }
    groups
        .into_iter()
        .map(|(ty, (names, _))| (names, ty))
        .filter(|(names, _)| names.len() > 1)
        .collect()
}

/// Layers that are measured at the least, where the model has them.
const LEAST_LAYERS: usize = 3;

/// What is measured: every tensor in all its types if that is affordable, else in the middle one, else only
/// tensors of layers spread evenly, of at least [`LEAST_LAYERS`] layers even so: the plan is much better with some
/// measurements of each kind of tensor than with none.
fn choose_probes(
    by_layer: BTreeMap<Option<usize>, Vec<(String, Vec<GgmlType>)>>,
    affordable: usize,
) -> Vec<(String, GgmlType)> {
    let all = |tensors: &[(String, Vec<GgmlType>)]| -> Vec<(String, GgmlType)> {
        let pairs = |t: &(String, Vec<GgmlType>)| -> Vec<(String, GgmlType)> {
            t.1.iter().map(|ty| (t.0.clone(), *ty)).collect()
        };
        tensors.iter().flat_map(pairs).collect()
    };
    let middle = |tensors: &[(String, Vec<GgmlType>)]| -> Vec<(String, GgmlType)> {
        let pair = |t: &(String, Vec<GgmlType>)| Some((t.0.clone(), *t.1.first()?));
        tensors.iter().filter_map(pair).collect()
    };
    let every: Vec<(String, GgmlType)> = by_layer.values().flat_map(|t| all(t)).collect();
    if every.len() <= affordable {
        return every;
    }
    let rest: Vec<(String, GgmlType)> = by_layer.get(&None).map(|t| middle(t)).unwrap_or_default();
    let layers: Vec<Vec<(String, GgmlType)>> = by_layer
        .iter()
        .filter(|(layer, _)| layer.is_some())
        .map(|(_, t)| middle(t))
        .collect();
    let n = layers.len();
    let spread = |keep: usize| -> Vec<(String, GgmlType)> {
        let layer = |i: usize| {
            &layers[if keep > 1 {
                i * (n - 1) / (keep - 1)
            } else {
                0
            }]
        };
        rest.iter()
            .chain((0..keep).flat_map(layer))
            .cloned()
            .collect()
    };
    let mut keep = n;
    while keep > LEAST_LAYERS && spread(keep).len() > affordable {
        keep -= 1;
    }
    spread(keep)
}

/// Prints which experts no token reached.
pub(super) fn report_unreached(analysis: &Analysis, global: &Global) {
    let progress = global.progress();
    let mut layers: BTreeMap<Vec<usize>, Vec<&str>> = BTreeMap::new();
    for (name, experts) in analysis.unreached() {
        layers.entry(experts).or_default().push(name);
    }
    for (experts, names) in layers {
        progress.note(format!(
            "warning: no calibration token reached expert {} of {}; its channels are weighed by the layer's other experts, more text would tell",
            experts.iter().map(usize::to_string).collect::<Vec<_>>().join(", "),
            names.join(", ")
        ));
    }
}

/// Evaluates the model as it is on `chunks`, and saves its log-probabilities at `path` as the reference for others.
pub(super) fn save_reference(
    model: &Model,
    chunks: &[Vec<i32>],
    path: &Path,
    options: &EvalOptions,
    progress: &Progress,
) -> Result<EvalReport> {
    let mut writer = LogitsWriter::create(path, model.vocab().n_tokens(), chunks)?;
    let report = evaluate(
        model,
        chunks,
        Reference::None,
        Some(&mut writer),
        options,
        progress,
    )?;
    writer.finish()?;
    Ok(report)
}

/// The keys that the output records, all of fixed length so that sizes are known before the plan.
pub(super) fn records(
    source: &Source,
    plan_digest: &str,
    analysis_digest: &str,
) -> Vec<(&'static str, String)> {
    vec![
        ("moqa.version", env!("CARGO_PKG_VERSION").to_owned()),
        ("moqa.source", source.digest.clone()),
        ("moqa.plan", plan_digest.to_owned()),
        ("moqa.analysis", analysis_digest.to_owned()),
    ]
}

/// Digest of the types that a plan chooses, for tensors and for experts.
pub(super) fn plan_digest(
    types: &BTreeMap<String, GgmlType>,
    experts: &BTreeMap<String, Vec<GgmlType>>,
) -> String {
    let mut hasher = blake3::Hasher::new();
    for (name, ty) in types {
        hasher.update(format!("{name}={ty}\n").as_bytes());
    }
    for (name, types) in experts {
        for (expert, ty) in types.iter().enumerate() {
            hasher.update(format!("{name}[{expert}]={ty}\n").as_bytes());
        }
    }
    format!("blake3:{}", hasher.finalize().to_hex())
}

/// Measures what errors are missing and makes the plan.
pub(super) fn plan(
    source: &Source,
    analysis: &mut Analysis,
    budget: &BudgetArgs,
    strategy: &StrategyArgs,
    data: &DataArgs,
    global: &Global,
) -> Result<Plan> {
    let progress = global.progress();
    if !source.view.is_moe() {
        progress.note("note: this model has no experts; tensors are weighed as in any model");
    }
    let candidates = strategy.candidates();
    complete_errors(source, analysis, &candidates, global)?;
    let analysis = &*analysis;
    let importance = Importance::new(analysis, Unreached::default());
    let resolved = budget.resolve(&source.gguf, !analysis.weights.is_empty())?;
    let analysis_digest = analysis::digest(analysis)?;
    let blank = plan_digest(&BTreeMap::new(), &BTreeMap::new());
    let inputs = PlanInputs {
        source: &source.gguf,
        view: &source.view,
        analysis,
        importance: &importance,
        candidates: &candidates,
        records: &records(source, &blank, &analysis_digest),
        within: None,
    };
    for note in inputs.pin_notes() {
        progress.note(format!("note: {note}"));
    }
    let (scenario, granularity) = (strategy.scenario()?, strategy.granularity()?);
    if let Scenario::Workload(named) = &scenario {
        note_repetition(analysis, named, &progress);
    }
    let wanted = !strategy.no_measure && scenario != Scenario::Balanced;
    let measures = wanted
        && !analysis.domains.is_empty()
        && analysis.checks.covers(analysis.domains.len())
        && analysis.origin.model_digest == source.digest;
    if wanted && !measures {
        progress.note(
            "note: plans go by what is expected and are not measured: the analysis has no text of some domains, or is of \
             another model; analyze with text of all domains at once",
        );
    }
    let mut plan = if measures {
        progress.note("plans are measured on the model (--no-measure goes by what is expected)");
        let model = load(&source.gguf, &ModelOptions::default())?;
        let judged = Judged::new(analysis, global.n_threads());
        let mut fares = MeasuredFares::new(
            &model,
            &source.gguf,
            &importance,
            analysis,
            &judged,
            refit_options(data, global),
            progress,
        )?;
        let measured = Measured {
            fares: &mut fares,
            known: &|| analysis.of_second_half(&model, global.n_threads(), &global.progress()),
        };
        plan_for(&inputs, resolved, &scenario, granularity, Some(measured))?
    } else {
        plan_for(&inputs, resolved, &scenario, granularity, None)?
    };
    plan.model_digest.clone_from(&source.digest);
    plan.analysis_digest = analysis_digest;
    Ok(plan)
}

/// Says which of a workload's domains have text that mostly repeats itself.
fn note_repetition(analysis: &Analysis, named: &[(String, f64)], progress: &Progress) {
    let each = analysis.domains.iter().zip(analysis.new_shares());
    let is_named = |name: &str| named.iter().any(|(n, w)| n == name && *w > 0.0);
    for (domain, new) in each.filter(|(d, new)| says_little(*new) && is_named(&d.name)) {
        progress.note(format!(
            "note: {:.0} % of the text of domain {} repeats itself and says little of other text; the plan follows it less: \
             text that is more varied would tell more",
            100.0 * (1.0 - new),
            domain.name
        ));
    }
}

/// What is fitted to a plan.
pub(super) fn refit_options(args: &DataArgs, global: &Global) -> RefitOptions {
    let stages = args.stages();
    RefitOptions {
        scales: !args.no_refit && stages.has(Stage::Mapping),
        routers: !args.no_refit && stages.has(Stage::Correlation),
        n_threads: global.n_threads(),
    }
}

/// Fits scales and routers to what a plan makes of the model, on the sample that the analysis holds; nothing where it
/// holds none, where the model is another or where the arguments say so.
pub(super) fn refit(
    source: &Source,
    analysis: &Analysis,
    plan: &Plan,
    importance: &Importance,
    args: &DataArgs,
    global: &Global,
) -> Result<Refit> {
    let options = refit_options(args, global);
    if !source.view.is_moe()
        || analysis.sample.chunks.is_empty()
        || analysis.origin.model_digest != source.digest
        || !(options.scales || options.routers)
    {
        return Ok(Refit::default());
    }
    let model = load(&source.gguf, &ModelOptions::default())?;
    let text = RefitText::for_plan(analysis, plan)?;
    let mut refitter = Refitter::new(&model, &source.gguf, global.progress());
    let (refit, _) = refitter.fit(plan, importance, &text, options)?;
    Ok(refit)
}

/// A line for each file that was written.
pub(super) fn wrote(written: &EncodeReport) -> String {
    let lines = written
        .files
        .iter()
        .map(|f| format!("wrote {}\n", f.display()));
    lines.collect()
}

/// Bytes of the file that llama-quantize would write for a preset.
pub(super) fn preset_bytes(source: &Gguf, preset: Preset, with_importance: bool) -> Result<u64> {
    let path = source.paths()[0];
    model::check_runnable(source).with_context(|| format!("{}", path.display()))?;
    crate::exit::set_subject(path);
    let types = if source.is_file() {
        preset_types(path, preset, with_importance)?
    } else {
        let memory = MemoryFile::header_only(source)?;
        preset_types(memory.path(), preset, with_importance)?
    };
    plan_bytes(source, &types, &[])
}

/// A short account of a plan.
pub(super) fn describe_plan(plan: &Plan) -> String {
    // A recipe written by hand states no figures, and one that was read has none of single tensors.
    let size = |bytes: u64| match bytes {
        0 => String::new(),
        n => format!(" {:>12}", crate::units::bytes(n)),
    };
    let mut s = String::new();
    if plan.file_bytes > 0 {
        s += &format!(
            "{} ({} bytes), {:.3} bits per weight, budget {}\n",
            crate::units::bytes(plan.file_bytes),
            plan.file_bytes,
            plan.bpw,
            crate::units::bytes(plan.budget_bytes)
        );
        s += &format!(
            "expected KL divergence {:.5} nats a token{}, {}\n",
            plan.objective,
            if plan.mix.is_empty() {
                ""
            } else {
                " (domains weighed as its types were chosen)"
            },
            if plan.exact {
                "the smallest possible by these measurements".to_owned()
            } else {
                format!(
                    "the smallest possible is at most {:.3} % less",
                    plan.gap() * 100.0
                )
            }
        );
    }
    let (mixed, plain): (Vec<_>, Vec<_>) = plan.tensors.iter().partition(|t| !t.experts.is_empty());
    let mut by_type: BTreeMap<GgmlType, (usize, u64)> = BTreeMap::new();
    for t in plain {
        let entry = by_type.entry(t.ty).or_default();
        entry.0 += 1;
        entry.1 += t.bytes;
    }
    for (ty, (n, bytes)) in by_type {
        s += &format!("  {ty:<8} {n:>5} tensors{}\n", size(bytes));
    }
    if !mixed.is_empty() {
        let bytes = mixed.iter().map(|t| t.bytes).sum();
        s += &format!(
            "  {:<8} {:>5} tensors{}\n",
            "mixed",
            mixed.len(),
            size(bytes)
        );
    }
    let mut experts: BTreeMap<GgmlType, usize> = BTreeMap::new();
    for ty in mixed.iter().flat_map(|t| &t.experts) {
        *experts.entry(*ty).or_default() += 1;
    }
    for (ty, n) in experts {
        s += &format!("    {ty:<8} {n:>5} experts\n");
    }
    s
}
