use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use clap::Args;
use serde::Serialize;

use super::report::{REPORT_VERSION, describe_analysis, describe_model, short_name};
use super::zero_shot::{self, TaskArgs, TaskSet};
use super::{AgainstArgs, BudgetArgs, DataArgs, Global, StrategyArgs, files_of, speed, steps};
use crate::analysis::{Analysis, Corpus, Importance, Unreached, chunk_tokens};
use crate::encode::{EncodeOptions, encode_mixed, output_metadata, simulate};
use crate::evaluate::{EvalOptions, EvalReport, LogitsReader, Reference, evaluate};
use crate::gguf::GgmlType;
use crate::mixed::Mixture;
use crate::output::{Scratch, check_writable, write_file};
use crate::plan::{Granularity, Plan};
use crate::report::{CurvePoint, PointKind, ReportData, render};
use crate::runtime::{Model, ModelOptions, Preset, write_preset};
use crate::tasks::TaskReport;

/// Compare our plans with llama.cpp's presets at no more bytes
///
/// The presets are made by libllama's own quantize function with the same importance data.
#[derive(Args)]
#[command(
    after_help = "Example:\n  moqa compare model.gguf --budgets Q3_K_M,Q4_K_M --text calibration/ --eval-text held-out/ --html report.html"
)]
pub(super) struct CompareArgs {
    /// The model (GGUF, of a split model the first file)
    model: PathBuf,
    #[command(flatten)]
    against: AgainstArgs,
    /// Evaluate at most this many chunks
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    eval_chunks: Option<u32>,
    #[command(flatten)]
    tasks: TaskArgs,
    /// Also plan a type for each expert, and measure that plan simulated; with --strategy per-expert only such plans
    /// are made
    #[arg(long)]
    per_expert: bool,
    /// Write a report (HTML)
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Keep the quantized files in this folder
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
    #[command(flatten)]
    strategy: StrategyArgs,
    #[command(flatten)]
    data: DataArgs,
}

/// What the files begin with that are made, and kept where that is asked for.
const PRESET_FILE: &str = "preset";
const MOQA_FILE: &str = "moqa";
const SIMULATED_FILE: &str = "simulated";

fn file_name(kind: &str, budget: Preset) -> String {
    format!("{kind}-{budget}.gguf")
}

/// The model as it is, in tables.
const ORIGINAL: &str = "original";

/// What is told as JSON.
#[derive(Serialize)]
struct Comparison {
    points: Vec<CurvePoint>,
    /// What the reader must know of the figures.
    notes: Vec<String>,
}

/// What all measurements of a comparison share.
struct Bench<'a> {
    source: &'a steps::Source,
    importance: &'a Importance,
    data: &'a DataArgs,
    logits: Scratch,
    folder: &'a Path,
    keep: bool,
    global: &'a Global,
    tasks: Option<TaskSet>,
    /// How the original and the presets measured so far did on the tasks.
    original: Option<TaskReport>,
    presets: Vec<(Preset, TaskReport)>,
}

pub(super) fn run(args: CompareArgs, global: &Global) -> Result<()> {
    let progress = global.progress();
    let source = steps::open(&args.model, &Default::default(), global)?;
    args.strategy.check()?;
    let presets = args.against.presets();
    let kept = args.keep.iter().flat_map(|folder| {
        let kinds = [PRESET_FILE, MOQA_FILE, SIMULATED_FILE];
        let each = presets
            .iter()
            .flat_map(move |p| kinds.map(|kind| file_name(kind, *p)));
        each.map(|name| folder.join(name))
    });
    let mut read = args.data.files()?;
    read.extend(files_of(&args.against.eval_text)?);
    read.extend(args.tasks.path().cloned());
    for path in args.html.iter().cloned().chain(kept) {
        source.refuse_overwriting(&path, &read)?;
    }
    if let Some(path) = &args.html {
        check_writable(path)?;
    }
    let text = Corpus::read(&args.against.eval_text)?;
    let tasks = args.tasks.tasks(&text, global)?;
    let temporary = tempfile::tempdir().context("cannot make a temporary folder")?;
    let folder = args.keep.as_deref().unwrap_or(temporary.path());
    std::fs::create_dir_all(folder)
        .with_context(|| format!("{}: cannot make this folder", folder.display()))?;

    let mut analysis = steps::analysis(&source, &args.data, true, global)?;
    steps::report_unreached(&analysis, global);
    let importance = Importance::new(&analysis, Unreached::default());
    let mut bench = Bench {
        source: &source,
        importance: &importance,
        data: &args.data,
        logits: Scratch::new(temporary.path().join("reference.logits")),
        folder,
        keep: args.keep.is_some(),
        global,
        tasks,
        original: None,
        presets: Vec::new(),
    };
    let (chunks, original) = {
        let reference = steps::load(
            &source.gguf,
            &ModelOptions {
                repack: true,
                ..ModelOptions::default()
            },
        )?;
        let mut chunks = chunk_tokens(
            reference.vocab(),
            &text.concatenated(),
            args.data.ctx as usize,
        )?;
        chunks.truncate(args.eval_chunks.unwrap_or(u32::MAX) as usize);
        let options = EvalOptions {
            n_threads: global.n_threads(),
        };
        let logits = bench.logits.path();
        let report = steps::save_reference(&reference, &chunks, logits, &options, &progress)?;
        let point = bench.original(&reference, &report, &chunks, &options)?;
        (chunks, point)
    };

    let mut points = vec![original];
    let mut last_plan = None;
    let experts = args.strategy.granularity()? == Granularity::Expert;
    let mut strategies = Vec::new();
    if !experts {
        strategies.push((args.strategy.clone(), PointKind::Moqa));
    }
    if experts || args.per_expert {
        let strategy = args.strategy.clone().per_expert();
        strategies.push((strategy, PointKind::MoqaPerExpert));
    }
    for &preset in &presets {
        progress.note(format!("budget of {preset}"));
        points.push(bench.preset(preset, &chunks)?);
        let budget = BudgetArgs {
            bpw: None,
            size: None,
            like: Some(preset),
        };
        for (strategy, kind) in &strategies {
            let plan = steps::plan(
                &source,
                &mut analysis,
                &budget,
                strategy,
                &args.data,
                global,
            )?;
            points.push(bench.plan(preset, &plan, &analysis, *kind, &chunks)?);
            // The page shows the first kind's.
            if *kind == strategies[0].1 {
                last_plan = Some(plan);
            }
        }
    }
    let notes = bench.notes(&chunks);
    let data = ReportData {
        title: format!("{} against llama.cpp's presets", short_name(&args.model)),
        model: describe_model(&source),
        generated_by: REPORT_VERSION.to_owned(),
        curve: Some(points.clone()),
        curve_notes: notes.clone(),
        ..describe_analysis(&source, &analysis, last_plan.as_ref())
    };
    if let Some(path) = &args.html {
        write_file(path, render(&data).as_bytes())?;
    }
    let result = Comparison { points, notes };
    global.print(&result, || {
        table(&result.points) + &accuracies(&result.points, &result.notes)
    })
}

impl Bench<'_> {
    /// Removes a quantized file once it is measured, unless it is to be kept.
    fn scratch(&self, file: &Path) -> Option<Scratch> {
        (!self.keep).then(|| Scratch::new(file.to_owned()))
    }

    fn preset(&mut self, preset: Preset, chunks: &[Vec<i32>]) -> Result<CurvePoint> {
        let file = self.folder.join(file_name(PRESET_FILE, preset));
        let _scratch = self.scratch(&file);
        let started = Instant::now();
        let importance = self.importance.to_llama();
        let data = (!importance.is_empty()).then_some(&importance);
        let source = self.source.gguf.paths()[0];
        write_preset(
            source,
            &file,
            preset,
            self.global.n_threads(),
            data,
            &[],
            false,
        )?;
        let seconds = started.elapsed().as_secs_f64();
        let bytes = std::fs::metadata(&file).map(|m| m.len()).unwrap_or(0);
        self.measure(&file, preset, PointKind::Preset, bytes, seconds, chunks)
    }

    fn plan(
        &mut self,
        preset: Preset,
        plan: &Plan,
        analysis: &Analysis,
        kind: PointKind,
        chunks: &[Vec<i32>],
    ) -> Result<CurvePoint> {
        let gguf = &self.source.gguf;
        let options = EncodeOptions {
            n_threads: self.global.n_threads(),
            split_max_bytes: None,
        };
        let progress = self.global.progress();
        let importance = plan.importance(analysis, Unreached::default())?;
        let refit = steps::refit(
            self.source,
            analysis,
            plan,
            &importance,
            self.data,
            self.global,
        )?;
        if kind == PointKind::MoqaPerExpert {
            let file = self.folder.join(file_name(SIMULATED_FILE, preset));
            let _scratch = self.scratch(&file);
            let out = GgmlType::F16;
            let kept = plan.types().into_keys().map(|name| (name, out)).collect();
            let metadata = output_metadata(gguf, &kept, &[]);
            let written = simulate(
                gguf,
                &metadata,
                plan,
                out,
                &importance,
                &refit,
                &file,
                &options,
                &progress,
            )?;
            return self.measure(
                &file,
                preset,
                kind,
                plan.file_bytes,
                written.seconds,
                chunks,
            );
        }
        let file = self.folder.join(file_name(MOQA_FILE, preset));
        let _scratch = self.scratch(&file);
        let types = plan.types();
        let records = steps::records(
            self.source,
            &steps::plan_digest(&types, &plan.expert_types()),
            &plan.analysis_digest,
        );
        let metadata = output_metadata(gguf, &types, &records);
        let written = encode_mixed(
            gguf,
            &metadata,
            &types,
            &Mixture::default(),
            &importance,
            &refit,
            &file,
            &options,
            &progress,
        )?;
        self.measure(&file, preset, kind, written.bytes, written.seconds, chunks)
    }

    fn measure(
        &mut self,
        file: &Path,
        preset: Preset,
        kind: PointKind,
        bytes: u64,
        quantize_seconds: f64,
        chunks: &[Vec<i32>],
    ) -> Result<CurvePoint> {
        let model = Model::load(
            file,
            &ModelOptions {
                repack: true,
                ..ModelOptions::default()
            },
        )?;
        let mut reference = LogitsReader::open(self.logits.path())?;
        let options = EvalOptions {
            n_threads: self.global.n_threads(),
        };
        let report = evaluate(
            &model,
            chunks,
            Reference::File(&mut reference),
            None,
            &options,
            &self.global.progress(),
        )?;
        let mut point = point(&report)?;
        point.label = match kind {
            PointKind::Preset => preset.to_string(),
            PointKind::Moqa => format!("moqa ≤ {preset}"),
            PointKind::MoqaPerExpert => format!("moqa per expert ≤ {preset}"),
            PointKind::Original => ORIGINAL.to_owned(),
        };
        point.kind = kind;
        point.budget = Some(preset.to_string());
        point.bytes = bytes;
        point.bpw = self.bits_per_weight(bytes);
        point.quantize_seconds = Some(quantize_seconds);
        // A simulated file is in floats: its speed says nothing about the plan.
        if kind != PointKind::MoqaPerExpert {
            point.tokens_per_second = Some(speed::tokens_per_second(&model, chunks, &options)?);
        }
        if let Some(tasks) = &self.tasks {
            let report = tasks.score(&model, self.global)?;
            let mut others: Vec<(String, &TaskReport)> = Vec::new();
            others.extend(self.original.iter().map(|r| (ORIGINAL.to_owned(), r)));
            if kind != PointKind::Preset {
                let same = self.presets.iter().filter(|(p, _)| *p == preset);
                others.extend(same.map(|(p, r)| (p.to_string(), r)));
            }
            zero_shot::record(&mut point, &report, &others)?;
            if kind == PointKind::Preset {
                self.presets.push((preset, report));
            }
        }
        Ok(point)
    }

    /// The model as it is: what the others are compared with.
    fn original(
        &mut self,
        model: &Model,
        report: &EvalReport,
        chunks: &[Vec<i32>],
        options: &EvalOptions,
    ) -> Result<CurvePoint> {
        let bytes = self.source.gguf.total_bytes();
        let mut point = CurvePoint {
            label: ORIGINAL.to_owned(),
            kind: PointKind::Original,
            bytes,
            bpw: self.bits_per_weight(bytes),
            // By definition.
            kld: 0.0,
            kld_error: 0.0,
            ppl: report.perplexity.value,
            ppl_ratio: 1.0,
            same_top: 1.0,
            tokens_per_second: Some(speed::tokens_per_second(model, chunks, options)?),
            ..CurvePoint::default()
        };
        if let Some(tasks) = &self.tasks {
            let report = tasks.score(model, self.global)?;
            zero_shot::record(&mut point, &report, &[])?;
            self.original = Some(report);
        }
        Ok(point)
    }

    fn bits_per_weight(&self, bytes: u64) -> f64 {
        let weights: u64 = self.source.gguf.tensors.iter().map(|t| t.n_elems()).sum();
        bytes as f64 * 8.0 / weights.max(1) as f64
    }

    /// What the reader must know of the figures.
    fn notes(&self, chunks: &[Vec<i32>]) -> Vec<String> {
        let tasks = self.tasks.as_ref().zip(self.original.as_ref());
        tasks
            .map(|(tasks, report)| tasks.describe(report))
            .into_iter()
            .chain([speed::describe(chunks)])
            .collect()
    }
}

fn point(report: &EvalReport) -> Result<CurvePoint> {
    let d = report.divergence.as_ref();
    ensure!(d.is_some(), "the evaluation had no reference");
    let d = d.cloned().unwrap_or_default();
    Ok(CurvePoint {
        kld: d.mean_kld.value,
        kld_error: d.mean_kld.error,
        ppl: report.perplexity.value,
        ppl_ratio: d.perplexity_ratio.value,
        same_top: d.same_top.value,
        ..CurvePoint::default()
    })
}

fn table(points: &[CurvePoint]) -> String {
    let mut s = format!(
        "{:<26} {:>12} {:>10} {:>7} {:>9} {:>8} {:>7} {:>8} {:>9}\n",
        "file", "bytes", "KLD", "ratio", "PPL", "PPL x", "top %", "quant s", "tokens/s"
    );
    let or_dash = |v: Option<f64>, digits: usize| {
        v.filter(|v| v.is_finite())
            .map_or("-".to_owned(), |v| format!("{v:.digits$}"))
    };
    for p in points {
        let preset = points
            .iter()
            .find(|q| q.kind == PointKind::Preset && q.budget == p.budget);
        s += &format!(
            "{:<26} {:>12} {:>10.6} {:>7} {:>9.4} {:>8.4} {:>7.2} {:>8} {:>9}\n",
            p.label,
            p.bytes,
            p.kld,
            or_dash(preset.map(|q| p.kld / q.kld), 3),
            p.ppl,
            p.ppl_ratio,
            p.same_top * 100.0,
            or_dash(p.quantize_seconds, 1),
            or_dash(p.tokens_per_second, 0)
        );
    }
    s
}

/// The accuracies, if there are any, and what the figures of both tables are.
fn accuracies(points: &[CurvePoint], notes: &[String]) -> String {
    let mut s = String::new();
    if points.iter().any(|p| p.accuracy.is_some()) {
        s += &format!(
            "\n{:<26} {:>7} {:>14}  difference in points [95 % interval], p\n",
            "file", "right %", "95 % interval"
        );
    }
    for p in points {
        let (Some(value), Some([low, high])) = (p.accuracy, p.accuracy_interval) else {
            continue;
        };
        let interval = format!("[{:.1}, {:.1}]", low * 100.0, high * 100.0);
        s += &format!("{:<26} {:>7.1} {interval:>14}", p.label, value * 100.0);
        for (i, t) in p.accuracy_tests.iter().enumerate() {
            let start = if i == 0 {
                String::new()
            } else {
                format!("\n{:49}", "")
            };
            s += &format!(
                "{start}  {:+.1} [{:+.1}, {:+.1}] against {}, p = {:.3}",
                t.difference * 100.0,
                t.interval[0] * 100.0,
                t.interval[1] * 100.0,
                t.against,
                t.p_value
            );
        }
        s.push('\n');
    }
    for note in notes {
        s += &format!("\n{note}\n");
    }
    s
}
