use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;
use serde::Serialize;

use super::report::{REPORT_VERSION, describe_model, short_name};
use super::{
    AgainstArgs, BudgetArgs, DataArgs, FolderArgs, Global, StrategyArgs, StrategyName, demand,
    each_once, files_of, steps,
};
use crate::analysis::{Analysis, Corpus, Stage, Stages, Unreached, chunk_tokens};
use crate::evaluate::{EvalOptions, LogitsReader, Reference, evaluate};
use crate::output::{Scratch, check_writable, write_file};
use crate::refit;
use crate::report::{AblationBar, ReportData, render};
use crate::runtime::ModelOptions;

/// Measure what each stage of the analysis is worth: plans without it, at the same bytes, on the same text
///
/// Each stage is left out alone, in planning and in what is fitted on the quantized model. Divergences are of the real
/// quantized weights, exchanged inside the loaded model; nothing is written but the report. Without activation nothing
/// is known of domains: that plan is the balanced one, whatever the strategy.
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
    /// 95 % confidence interval, by resampling the evaluation's chunks; none where there is one chunk.
    #[serde(skip_serializing_if = "Option::is_none")]
    interval: Option<[f64; 2]>,
}

#[derive(Serialize)]
struct Outcome {
    /// Tokens scored.
    tokens: usize,
    bars: Vec<AblationBar>,
    stages: Vec<Worth>,
}

pub(super) fn run(args: AblateArgs, global: &Global) -> Result<()> {
    demand(
        args.data.without.is_empty(),
        "--without has no place here: each stage is left out in turn",
    )?;
    args.strategy.check()?;
    let scenario = args.strategy.scenario()?;
    if let Some(labels) = labels_to_measure(&args.data) {
        scenario.check(&labels.iter().map(String::as_str).collect::<Vec<_>>())?;
    }
    let progress = global.progress();
    let source = steps::open(&args.model, &args.folder, global)?;
    if let Some(path) = &args.html {
        let texts = files_of(&args.against.eval_text)?;
        source.refuse_overwriting(path, args.data.files()?.iter().chain(&texts))?;
        check_writable(path)?;
    }
    let text = Corpus::read(&args.against.eval_text)?.concatenated();
    let strategy = if args.strategy.has_granularity() {
        args.strategy.clone()
    } else {
        args.strategy.clone().per_expert()
    };
    let full = steps::analysis(&source, &args.data, true, global)?;
    let domains: Vec<&str> = full.domains.iter().map(|d| d.name.as_str()).collect();
    scenario.check(&domains)?;
    let model = steps::load(&source.gguf, &ModelOptions::default())?;
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
    let mut measured: Vec<Row> = Vec::new();
    let (mut bars, mut tokens) = (Vec::new(), 0);
    for preset in args.against.presets() {
        let budget = BudgetArgs {
            bpw: None,
            size: Some(steps::preset_bytes(&source.gguf, preset, true)?),
            like: None,
        };
        let (mut row, mut klds) = (Row::new(), Vec::new());
        for (off, analysis) in &mut variants {
            let name = off.map_or("all stages".to_owned(), |s| format!("without {s}"));
            let data = DataArgs {
                without: off.iter().copied().collect(),
                ..args.data.clone()
            };
            let strategy = if analysis.domains.is_empty() {
                balanced(&strategy)
            } else {
                strategy.clone()
            };
            let plan = steps::plan(&source, analysis, &budget, &strategy, &data, global)?;
            let importance = plan.importance(analysis, Unreached::default())?;
            let report = {
                let what = steps::refit_options(&data, global);
                let text = refit::RefitText::for_plan(analysis, &plan)?;
                let _exchanged = refitter.fit(&plan, &importance, &text, what)?;
                let mut reference = LogitsReader::open(logits.path())?;
                let file = Reference::File(&mut reference);
                evaluate(&model, &chunks, file, None, &options, &progress)?
            };
            let divergence = report
                .divergence
                .context("the evaluation had no reference")?;
            let kld = divergence.mean_kld;
            progress.note(format!(
                "{preset}, {name}: {:.6} ± {:.6} nats a token",
                kld.value, kld.error
            ));
            tokens = report.tokens;
            klds.push(kld);
            row.push(divergence.kld_by_chunk);
        }
        let bootstrap = Bootstrap::new(row[0].len());
        for (i, stage) in Stage::ALL.iter().enumerate() {
            let (_, interval) = bootstrap.loss(std::slice::from_ref(&row), i + 1);
            bars.push(AblationBar {
                stage: stage.to_string(),
                budget: preset.to_string(),
                kld: klds[i + 1].value,
                kld_error: klds[i + 1].error,
                full_kld: klds[0].value,
                interval,
            });
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

/// The labels of the domains that the analysis will have, where it is measured on text alone.
fn labels_to_measure(data: &DataArgs) -> Option<Vec<String>> {
    if data.analysis.is_some() || !data.imatrix.is_empty() {
        return None;
    }
    let all = if data.text.is_empty() {
        Corpus::built_in().labels
    } else {
        data.text.iter().map(|t| t.label.clone()).collect()
    };
    Some(each_once(all))
}

/// The strategy with all text counting alike.
fn balanced(strategy: &StrategyArgs) -> StrategyArgs {
    let mut balanced = strategy.clone();
    balanced.weight.clear();
    let of_domains = |s: &StrategyName| matches!(s, StrategyName::Workload | StrategyName::Robust);
    balanced.strategy.retain(|s| !of_domains(s));
    balanced
}

/// The divergence of each chunk at one budget, by variant: with all stages, then without each.
type Row = Vec<Vec<f64>>;

/// Resamples of the chunks.
const RESAMPLES: usize = 2000;

/// Draws of the evaluation's chunks. What is compared is drawn alike, so that a chunk's own difficulty, which is in
/// both, does not widen the interval.
struct Bootstrap {
    n_chunks: usize,
    draws: Vec<Vec<usize>>,
}

impl Bootstrap {
    fn new(n_chunks: usize) -> Self {
        let mut state = 0x9e37_79b9_7f4a_7c15u64;
        let mut draw = |_| {
            // xorshift64*: enough for a bootstrap, and the same every time.
            state ^= state >> 12;
            state ^= state << 25;
            state ^= state >> 27;
            (state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % n_chunks.max(1)
        };
        let draws = (0..RESAMPLES).map(|_| (0..n_chunks).map(&mut draw).collect());
        Self {
            draws: draws.collect(),
            n_chunks,
        }
    }

    /// Mean over the budgets of the divergence of a variant over that with all stages, less 1, and its 95 % interval;
    /// none where one chunk says nothing of others, or where nothing can be divided by.
    fn loss(&self, measured: &[Row], variant: usize) -> (f64, Option<[f64; 2]>) {
        let of = |pick: &dyn Fn(usize) -> usize| {
            let ratio = |row: &Row| {
                let sum = |v: &[f64]| (0..self.n_chunks).map(|i| v[pick(i)]).sum::<f64>();
                sum(&row[variant]) / sum(&row[0])
            };
            measured.iter().map(ratio).sum::<f64>() / measured.len().max(1) as f64 - 1.0
        };
        let loss = of(&|i| i);
        if self.n_chunks < 2 {
            return (loss, None);
        }
        let mut drawn: Vec<f64> = self.draws.iter().map(|d| of(&|i| d[i])).collect();
        drawn.sort_by(f64::total_cmp);
        let at = |q: f64| drawn[((drawn.len() - 1) as f64 * q).round() as usize];
        let interval = [at(0.025), at(0.975)];
        (
            loss,
            Some(interval).filter(|i| i.iter().all(|v| v.is_finite())),
        )
    }
}

/// What leaving each stage out costs on the average of the budgets.
fn worths(measured: &[Row]) -> Vec<Worth> {
    let bootstrap = Bootstrap::new(measured.first().map_or(0, |row| row[0].len()));
    let worth = |(i, stage): (usize, &Stage)| {
        let (loss, interval) = bootstrap.loss(measured, i + 1);
        Worth {
            stage: *stage,
            loss,
            interval,
        }
    };
    Stage::ALL.iter().enumerate().map(worth).collect()
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
                "without {}: {:+.1} % on the average of the budgets",
                w.stage,
                w.loss * 100.0
            );
            if let Some([low, high]) = w.interval {
                s += &format!(
                    ", 95 % interval {:+.1} to {:+.1} %",
                    low * 100.0,
                    high * 100.0
                );
            }
            s += "\n";
        }
        s
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Scenario;

    #[test]
    fn a_stage_that_costs_everywhere_has_an_interval_above_zero() {
        let base: Vec<f64> = (0..200).map(|i| 0.01 + 0.005 * f64::from(i % 7)).collect();
        let worse: Vec<f64> = base.iter().map(|v| v * 1.05).collect();
        let noisy: Vec<f64> = base
            .iter()
            .enumerate()
            .map(|(i, v)| v * if i % 2 == 0 { 1.3 } else { 0.7 })
            .collect();
        let measured = [vec![base.clone(), worse, noisy, base]];
        let found = worths(&measured);
        let interval = |i: usize| found[i].interval.unwrap();
        assert!((found[0].loss - 0.05).abs() < 1e-9);
        // The chunks differ by more than that, but both are of the same ones.
        assert!(interval(0)[0] > 0.049 && interval(0)[1] < 0.051);
        assert!(interval(1)[0] < 0.0 && interval(1)[1] > 0.0);
        assert_eq!(found[2].loss, 0.0);
        // Of one budget the mean is the budget's own.
        let bootstrap = Bootstrap::new(200);
        assert_eq!(bootstrap.loss(&measured, 2).1, found[1].interval);
    }

    #[test]
    fn one_chunk_has_no_interval() {
        let row = |n: usize| vec![vec![0.01; n], vec![0.02; n], vec![0.01; n], vec![0.01; n]];
        let found = worths(&[row(1)]);
        assert!((found[0].loss - 1.0).abs() < 1e-12);
        assert!(found.iter().all(|w| w.interval.is_none()));
        let json = serde_json::to_value(&found[0]).unwrap();
        assert!(json.get("interval").is_none(), "{json}");
        let outcome = |n: usize| Outcome {
            tokens: 1,
            bars: Vec::new(),
            stages: worths(&[row(n)]),
        };
        assert!(!outcome(1).to_text().contains("interval"));
        assert!(
            outcome(2)
                .to_text()
                .contains("95 % interval +100.0 to +100.0 %")
        );
        // Nothing to divide by.
        let nothing = worths(&[vec![vec![0.0; 3]; 4]]);
        assert!(nothing[0].interval.is_none());
    }

    #[test]
    fn without_domains_the_strategy_is_balanced() {
        let strategy = StrategyArgs {
            strategy: vec![StrategyName::PerExpert],
            weight: vec![("code".to_owned(), 0.7)],
            no_measure: true,
            types: Vec::new(),
            min_type: None,
            max_type: None,
            pin: Vec::new(),
        };
        let robust = StrategyArgs {
            strategy: vec![StrategyName::Robust, StrategyName::PerExpert],
            weight: Vec::new(),
            ..strategy.clone()
        };
        for strategy in [strategy, robust] {
            let balanced = balanced(&strategy);
            assert_eq!(balanced.scenario().unwrap(), Scenario::Balanced);
            let granularity = |s: &StrategyArgs| s.granularity().unwrap();
            assert_eq!(granularity(&balanced), granularity(&strategy));
        }
    }
}
