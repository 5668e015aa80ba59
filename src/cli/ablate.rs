use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use clap::Args;
use serde::Serialize;

use super::report::{REPORT_VERSION, describe_model, short_name};
use super::{AgainstArgs, BudgetArgs, DataArgs, FolderArgs, Global, StrategyArgs, steps};
use crate::analysis::{Analysis, Corpus, Stage, Stages, Unreached, chunk_tokens};
use crate::evaluate::{EvalOptions, LogitsReader, Reference, evaluate};
use crate::output::{Scratch, check_writable, write_file};
use crate::refit;
use crate::report::{AblationBar, ReportData, render};
use crate::runtime::ModelOptions;

/// Measure what each stage of the analysis is worth: plans without it, at the same bytes, on the same text
///
/// Each stage is left out alone, in planning and in what is fitted on the quantized model. Divergences are of the real
/// quantized weights, exchanged inside the loaded model; nothing is written but the report.
#[derive(Args)]
#[command(
    after_help = "Example:\n  moqa ablate model.gguf --text calibration/ --eval-text held-out/ --budgets Q3_K_M,Q4_K_M"
)]
pub(super) struct AblateArgs {
    /// The model (GGUF, of a split model the first file; or a Hugging Face folder)
    model: PathBuf,
    #[command(flatten)]
    against: AgainstArgs,
    /// Evaluate at most this many chunks, spread over the text
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(2..))]
    eval_chunks: Option<u32>,
    /// Write a report (HTML)
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    #[command(flatten)]
    folder: FolderArgs,
    #[command(flatten)]
    strategy: StrategyArgs,
    #[command(flatten)]
    data: DataArgs,
}

/// The worth of a stage over all budgets.
#[derive(Serialize)]
struct Worth {
    stage: Stage,
    /// Mean over the budgets of the divergence without the stage over that with all, less 1.
    loss: f64,
    /// 95 % confidence interval, by resampling the evaluation's chunks.
    interval: (f64, f64),
}

#[derive(Serialize)]
struct Outcome {
    /// Tokens scored.
    tokens: usize,
    bars: Vec<AblationBar>,
    stages: Vec<Worth>,
}

pub(super) fn run(args: AblateArgs, global: &Global) -> Result<()> {
    ensure!(
        args.data.without.is_empty(),
        "--without has no place here: each stage is left out in turn"
    );
    let progress = global.progress();
    let source = steps::open(&args.model, &args.folder, global)?;
    if let Some(path) = &args.html {
        check_writable(path)?;
    }
    let strategy = if args.strategy.has_granularity() {
        args.strategy.clone()
    } else {
        args.strategy.clone().per_expert()
    };
    let full = steps::analysis(&source, &args.data, true, global)?;
    let model = steps::load(&source.gguf, &ModelOptions::default())?;
    let text = Corpus::read(&args.against.eval_text)?.concatenated();
    let mut chunks = chunk_tokens(model.vocab(), &text, args.data.ctx as usize)?;
    if let Some(n) = args
        .eval_chunks
        .map(|n| n as usize)
        .filter(|n| *n < chunks.len())
    {
        chunks = (0..n)
            .map(|i| chunks[i * chunks.len() / n].clone())
            .collect();
    }
    let temporary = tempfile::tempdir().context("cannot make a temporary folder")?;
    let logits = Scratch::new(temporary.path().join("reference.logits"));
    let options = EvalOptions {
        n_threads: global.n_threads(),
    };
    steps::save_reference(&model, &chunks, logits.path(), &options, &progress)?;

    let mut variants: Vec<(Option<Stage>, Analysis)> = vec![(None, full.clone())];
    for stage in Stage::ALL {
        variants.push((Some(stage), Stages::without(&[stage]).apply(&full)));
    }
    let mut refitter = refit::Refitter::new(&model, &source.gguf, progress);
    // By budget and variant: the divergence of each chunk.
    let mut measured: Vec<Vec<Vec<f64>>> = Vec::new();
    let (mut bars, mut tokens) = (Vec::new(), 0);
    for &preset in &args.against.budgets {
        let budget = BudgetArgs {
            bpw: None,
            size: Some(steps::preset_bytes(&source.gguf, preset, true)?),
            like: None,
        };
        let mut row: Vec<Vec<f64>> = Vec::new();
        for (off, analysis) in &mut variants {
            let name = off.map_or("all stages".to_owned(), |s| format!("without {s}"));
            let plan = steps::plan(&source, analysis, &budget, &strategy, &args.data, global)?;
            let importance = plan.importance(analysis, Unreached::default())?;
            let report = {
                let what = refit::RefitOptions {
                    scales: !args.data.no_refit && *off != Some(Stage::Mapping),
                    routers: !args.data.no_refit && *off != Some(Stage::Correlation),
                    n_threads: global.n_threads(),
                };
                let text = refit::RefitText::for_plan(analysis, &plan)?;
                let _exchanged = refitter.fit(&plan, &importance, &text, what)?;
                let mut reference = LogitsReader::open(logits.path())?;
                let file = Reference::File(&mut reference);
                evaluate(&model, &chunks, file, None, &options, &progress)?
            };
            let divergence = report
                .divergence
                .context("the evaluation had no reference")?;
            progress.note(format!(
                "{preset}, {name}: {:.6} ± {:.6} nats a token",
                divergence.mean_kld.value, divergence.mean_kld.error
            ));
            tokens = report.tokens;
            if let Some(stage) = off {
                bars.push(AblationBar {
                    stage: stage.to_string(),
                    budget: preset.to_string(),
                    kld: divergence.mean_kld.value,
                    kld_error: divergence.mean_kld.error,
                    full_kld: mean(&row[0]),
                });
            }
            row.push(divergence.kld_by_chunk);
        }
        measured.push(row);
    }
    let outcome = Outcome {
        tokens,
        bars,
        stages: worths(&measured),
    };
    if let Some(path) = &args.html {
        let data = ReportData {
            title: format!("What the stages are worth on {}", short_name(&args.model)),
            model: describe_model(&source),
            generated_by: REPORT_VERSION.to_owned(),
            ablation: Some(outcome.bars.clone()),
            ..ReportData::default()
        };
        write_file(path, render(&data).as_bytes())?;
    }
    global.print(&outcome, || outcome.to_text())
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

/// Resamples of the chunks.
const RESAMPLES: usize = 2000;

/// What leaving each stage out costs, from the chunks' divergences by budget and variant (all stages first).
fn worths(measured: &[Vec<Vec<f64>>]) -> Vec<Worth> {
    let n = measured.first().map_or(0, |row| row[0].len());
    let loss = |variant: usize, pick: &dyn Fn(usize) -> usize| {
        let ratio = |row: &Vec<Vec<f64>>| {
            let sum = |v: &[f64]| (0..n).map(|i| v[pick(i)]).sum::<f64>();
            sum(&row[variant]) / sum(&row[0])
        };
        measured.iter().map(ratio).sum::<f64>() / measured.len().max(1) as f64 - 1.0
    };
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut resamples: Vec<Vec<usize>> = Vec::with_capacity(RESAMPLES);
    for _ in 0..RESAMPLES {
        let draw = |_| {
            // xorshift64*: enough for a bootstrap, and the same every time.
            state ^= state >> 12;
            state ^= state << 25;
            state ^= state >> 27;
            (state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % n.max(1)
        };
        resamples.push((0..n).map(draw).collect());
    }
    Stage::ALL
        .iter()
        .enumerate()
        .map(|(i, &stage)| {
            let mut drawn: Vec<f64> = resamples.iter().map(|r| loss(i + 1, &|k| r[k])).collect();
            drawn.sort_by(f64::total_cmp);
            let at = |q: f64| drawn[((drawn.len() - 1) as f64 * q).round() as usize];
            Worth {
                stage,
                loss: loss(i + 1, &|k| k),
                interval: (at(0.025), at(0.975)),
            }
        })
        .collect()
}

impl Outcome {
    fn to_text(&self) -> String {
        let mut rows: BTreeMap<&str, Vec<&AblationBar>> = BTreeMap::new();
        let mut order = Vec::new();
        for b in &self.bars {
            if !rows.contains_key(b.budget.as_str()) {
                order.push(b.budget.as_str());
            }
            rows.entry(&b.budget).or_default().push(b);
        }
        let mut s = format!(
            "KL divergence in nats a token, {} tokens scored\n",
            self.tokens
        );
        s += &format!("{:<10} {:>11}", "budget", "all stages");
        for stage in Stage::ALL {
            s += &format!(" {:>21}", format!("without {stage}"));
        }
        s += "\n";
        for budget in order {
            let bars = &rows[budget];
            s += &format!("{budget:<10} {:>11.6}", bars[0].full_kld);
            for b in bars {
                let cell = format!(
                    "{:.6} ({:+.1} %)",
                    b.kld,
                    (b.kld / b.full_kld - 1.0) * 100.0
                );
                s += &format!(" {cell:>21}");
            }
            s += "\n";
        }
        for w in &self.stages {
            s += &format!(
                "without {}: {:+.1} % on the average of the budgets, 95 % interval {:+.1} to {:+.1} %\n",
                w.stage,
                w.loss * 100.0,
                w.interval.0 * 100.0,
                w.interval.1 * 100.0
            );
        }
        s
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stage_that_costs_everywhere_has_an_interval_above_zero() {
        let base: Vec<f64> = (0..200).map(|i| 0.01 + 0.005 * f64::from(i % 7)).collect();
        let worse: Vec<f64> = base.iter().map(|v| v * 1.05).collect();
        let noisy: Vec<f64> = base
            .iter()
            .enumerate()
            .map(|(i, v)| v * if i % 2 == 0 { 1.3 } else { 0.7 })
            .collect();
        let found = worths(&[vec![base.clone(), worse, noisy, base]]);
        assert!((found[0].loss - 0.05).abs() < 1e-9);
        assert!(found[0].interval.0 > 0.049 && found[0].interval.1 < 0.051);
        assert!(found[1].interval.0 < 0.0 && found[1].interval.1 > 0.0);
        assert_eq!(found[2].loss, 0.0);
    }
}
