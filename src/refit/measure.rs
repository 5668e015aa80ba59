//! The passes over the sample that the fit needs.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};

use super::exchange::{Planned, changed, install, install_routers, type_of};
use super::router::{Regression, Token, margin};
use super::text::RefitText;
use crate::analysis::Importance;
use crate::encode::{Refit, can_rescale};
use crate::ggml;
use crate::gguf::{Gguf, TensorInfo};
use crate::model::ModelView;
use crate::plan::{Plan, TensorChoice};
use crate::progress::{Bar, Progress};
use crate::runtime::{Context, ContextOptions, Model, Node, Observer, WeightHandles};

/// Tokens at which an expert's own energy counts as much as the agreement on no change.
const PRIOR_TOKENS: f64 = 50.0;
/// Factors outside are taken as a sign that something else is wrong.
const RANGE: (f64, f64) = (0.8, 1.25);

/// What is fitted.
#[derive(Clone, Copy, Debug)]
pub struct RefitOptions {
    /// The scales of experts' matrices.
    pub scales: bool,
    /// The routers.
    pub routers: bool,
    /// Worker threads.
    pub n_threads: usize,
}

/// Fits plans to a loaded model, which must be without repacking. What the model does unquantized is kept from one plan to
/// the next that is fitted on the same text.
pub struct Refitter<'m, 's> {
    model: &'m Model,
    source: &'s Gguf,
    progress: Progress,
    original: Option<Original>,
}

/// What the unquantized model does on a text.
struct Original {
    chunks: Vec<(Vec<i32>, usize)>,
    pass: Pass,
}

impl<'m, 's> Refitter<'m, 's> {
    /// For `model`, loaded from `source`.
    pub fn new(model: &'m Model, source: &'s Gguf, progress: Progress) -> Self {
        Self {
            model,
            source,
            progress,
            original: None,
        }
    }

    /// Fits what [`Refit`] holds for `plan`, on `text`. The loaded model then is what the plan makes of it, what was fitted
    /// included, until the handles are dropped. Takes up to four passes over the text, and as much memory as the quantized
    /// tensors (in float16 where experts have types of their own).
    ///
    /// # Errors
    /// The model cannot be evaluated, or a tensor cannot be quantized.
    pub fn fit(
        &mut self,
        plan: &Plan,
        importance: &Importance,
        text: &RefitText<'_>,
        options: RefitOptions,
    ) -> Result<(Refit, WeightHandles<'m>)> {
        let source = self.source;
        let mut refit = Refit::default();
        let mut handles = WeightHandles::find(self.model)?;
        let tensors = changed(source, plan, &handles);
        let put = |handles: &mut WeightHandles<'_>, planned: Planned<'_>, refit: &Refit| {
            install(
                handles,
                source,
                planned,
                refit,
                importance,
                options.n_threads,
            )
        };
        let Some(len) = text.longest().filter(|_| options.scales || options.routers) else {
            for &planned in &tensors {
                put(&mut handles, planned, &refit)?;
            }
            return Ok((refit, handles));
        };
        let experts = tensors
            .iter()
            .filter(|(t, _)| options.scales && t.name.contains("_exps."));
        // A projection that reads what others of the same experts give is fitted after them.
        let (last, first): (Vec<_>, Vec<_>) = experts
            .copied()
            .partition(|(t, _)| t.name.contains("ffn_down_exps"));

        let known = self.original.take().filter(|o| {
            let measured = |(t, _): &Planned<'_>| o.pass.energies.contains_key(&t.name);
            text.is_of(&o.chunks)
                && first.iter().chain(&last).all(measured)
                && (o.pass.keeps_logits || !options.routers)
        });
        let passes = usize::from(known.is_none())
            + usize::from(!first.is_empty())
            + usize::from(!last.is_empty())
            + usize::from(options.routers);
        let bar = self
            .progress
            .bar("refit", (passes * text.n_chunks()) as u64, "chunks");
        let mut context_options =
            ContextOptions::for_chunks(len, self.model.vocab().n_tokens(), options.n_threads);
        context_options.observable = true;
        let mut bench = Bench {
            n_seq: context_options.n_seq,
            context: Context::new(self.model, context_options)?,
            text,
            bar: &bar,
        };

        let original = match known {
            Some(known) => known,
            None => {
                let mut pass = Pass {
                    keeps_logits: options.routers,
                    ..Pass::of(first.iter().chain(&last))
                };
                bench.run(&mut pass)?;
                let chunks = text.to_chunks();
                Original { chunks, pass }
            }
        };
        for &planned in &tensors {
            put(&mut handles, planned, &refit)?;
        }
        for group in [&first, &last] {
            if group.is_empty() {
                continue;
            }
            let mut pass = Pass::of(group.iter());
            bench.run(&mut pass)?;
            for &(tensor, choice) in group {
                let factors = factors(tensor, choice, text, &original.pass, &pass);
                refit.scales.insert(tensor.name.clone(), factors);
                put(&mut handles, (tensor, choice), &refit)?;
            }
        }
        if options.routers && !original.pass.logits.is_empty() {
            let mut fit = RouterPass::new(&original.pass.logits, source)?;
            bench.run(&mut fit)?;
            refit.routers = fit.finish(source)?;
            install_routers(&mut handles, source, &refit)?;
        }
        bar.finish();
        self.original = Some(original);
        Ok((refit, handles))
    }
}

/// Factors that give each expert's outputs the mean square they have in the original.
fn factors(
    tensor: &TensorInfo,
    choice: &TensorChoice,
    text: &RefitText<'_>,
    original: &Pass,
    now: &Pass,
) -> Vec<f32> {
    let of = |pass: &Pass| Some(Energy::of(pass.energies.get(&tensor.name)?, text));
    let (Some(a), Some(b)) = (of(original), of(now)) else {
        return Vec::new();
    };
    (0..a.sums.len())
        .map(|e| {
            let ty = type_of(choice, e);
            let ratio = (a.sums[e] / a.tokens[e]) / (b.sums[e] / b.tokens[e]);
            if ty == tensor.ty || !can_rescale(ty) || !(ratio.is_finite() && ratio > 0.0) {
                return 1.0;
            }
            let n = a.effective(e).min(b.effective(e));
            let trust = n / (n + PRIOR_TOKENS);
            (ratio.ln() / 2.0 * trust).exp().clamp(RANGE.0, RANGE.1) as f32
        })
        .collect()
}

/// An observer of text of which some counts more.
trait Weighted: Observer {
    /// What follows is of this part of the text, of which a token counts as `weight`.
    fn set_part(&mut self, part: usize, weight: f64);
}

struct Bench<'m, 's> {
    context: Context<'m>,
    n_seq: usize,
    text: &'s RefitText<'s>,
    bar: &'s Bar,
}

impl Bench<'_, '_> {
    fn run(&mut self, observer: &mut dyn Weighted) -> Result<()> {
        for (sequences, part) in self.text.groups(self.n_seq) {
            observer.set_part(part, self.text.weight(part));
            // Outputs of all positions, so that the last layer computes all tokens too.
            self.context.evaluate(&sequences, 0, Some(&mut *observer))?;
            self.bar.inc(sequences.len() as u64);
        }
        Ok(())
    }
}

/// Squares of experts' outputs on one part of the text.
struct Squares {
    sums: Vec<f64>,
    tokens: Vec<f64>,
}

impl Squares {
    fn new(n_expert: usize) -> Self {
        let zero = vec![0.0; n_expert];
        Self {
            sums: zero.clone(),
            tokens: zero,
        }
    }
}

/// Squares of experts' outputs, with the weights of the parts of the text.
struct Energy {
    sums: Vec<f64>,
    /// Sums of the tokens' weights, and of their squares.
    tokens: Vec<f64>,
    squares: Vec<f64>,
}

impl Energy {
    fn of(parts: &BTreeMap<usize, Squares>, text: &RefitText<'_>) -> Self {
        let n = parts.values().next().map_or(0, |p| p.sums.len());
        let weighted = |of: &dyn Fn(&Squares, usize, f64) -> f64| -> Vec<f64> {
            let parts = parts.iter().map(|(part, s)| (s, text.weight(*part)));
            let parts: Vec<(&Squares, f64)> = parts.collect();
            let sum = |e| parts.iter().map(|(s, w)| of(s, e, *w)).sum();
            (0..n).map(sum).collect()
        };
        Self {
            sums: weighted(&|s, e, w| w * s.sums[e]),
            tokens: weighted(&|s, e, w| w * s.tokens[e]),
            squares: weighted(&|s, e, w| w * w * s.tokens[e]),
        }
    }

    /// Tokens of equal weight that say as much of an expert (Kish's effective sample size).
    fn effective(&self, expert: usize) -> f64 {
        let squares = self.squares[expert];
        if squares > 0.0 {
            self.tokens[expert] * self.tokens[expert] / squares
        } else {
            0.0
        }
    }
}

/// Squares of outputs by tensor and part of the text, and what the routers said.
#[derive(Default)]
struct Pass {
    energies: BTreeMap<String, BTreeMap<usize, Squares>>,
    keeps_logits: bool,
    part: usize,
    /// By router tensor: logits of all tokens, and experts used.
    logits: BTreeMap<String, Vec<f32>>,
}

impl Pass {
    /// Of the outputs of these tensors.
    fn of<'a>(tensors: impl Iterator<Item = &'a Planned<'a>>) -> Self {
        let names = tensors.map(|(t, _)| (t.name.clone(), BTreeMap::new()));
        Self {
            energies: names.collect(),
            ..Self::default()
        }
    }
}

/// A matrix of router weights.
fn is_router(name: &str) -> bool {
    name.ends_with("ffn_gate_inp.weight")
}

impl Weighted for Pass {
    fn set_part(&mut self, part: usize, _: f64) {
        self.part = part;
    }
}

impl Observer for Pass {
    fn wants(&mut self, node: Node<'_>) -> bool {
        let Some(weight) = node.src(0) else {
            return false;
        };
        node.is_f32()
            && (node.is_mul_mat_id() && self.energies.contains_key(weight.name())
                || self.keeps_logits && node.is_mul_mat() && is_router(weight.name()))
    }

    fn observe(&mut self, node: Node<'_>) {
        let Some(weight) = node.src(0) else { return };
        if !node.is_mul_mat_id() {
            let kept = self.logits.entry(weight.name().to_owned()).or_default();
            for token in 0..node.ne()[1] {
                kept.extend(node.row_f32(token, 0, 0).into_iter().flatten());
            }
            return;
        }
        let (Some(parts), Some(ids)) = (self.energies.get_mut(weight.name()), node.src(2)) else {
            return;
        };
        let new = || Squares::new(weight.ne()[2]);
        let energy = parts.entry(self.part).or_insert_with(new);
        let [_, n_used, n_tokens, _] = node.ne();
        for token in 0..n_tokens {
            let Some(ids) = ids.row_i32(token, 0, 0) else {
                return;
            };
            for (slot, &id) in ids.iter().enumerate().take(n_used) {
                if let (Some(row), true) = (
                    node.row_f32(slot, token, 0),
                    (id as usize) < energy.sums.len(),
                ) {
                    let square: f32 = row.iter().map(|v| v * v).sum();
                    energy.sums[id as usize] += f64::from(square);
                    energy.tokens[id as usize] += 1.0;
                }
            }
        }
    }
}

/// The pass that fits the routers.
struct RouterPass<'o> {
    /// By router tensor.
    fits: BTreeMap<String, RouterFit<'o>>,
    weight: f64,
}

struct RouterFit<'o> {
    /// The original's logits of all tokens.
    wanted: &'o [f32],
    n_expert: usize,
    /// How near each token is to a tie.
    nearness: Vec<f64>,
    /// Tokens seen.
    at: usize,
    regression: Option<Regression>,
}

impl<'o> RouterPass<'o> {
    fn new(logits: &'o BTreeMap<String, Vec<f32>>, source: &Gguf) -> Result<Self> {
        let n_used = ModelView::new(source)?.n_expert_used;
        let fits = logits
            .iter()
            .filter_map(|(name, wanted)| {
                let n_expert = source.tensor(name)?.ne(1) as usize;
                let margins: Vec<f64> = wanted
                    .chunks_exact(n_expert)
                    .map(|l| margin(l, n_used))
                    .collect();
                let mean = margins.iter().sum::<f64>() / margins.len().max(1) as f64;
                // Nothing to fit where every expert is used, or where a margin is not a number.
                if !(mean.is_finite() && mean > 0.0) {
                    return None;
                }
                let typical = TYPICAL * mean;
                let fit = RouterFit {
                    n_expert,
                    nearness: margins.iter().map(|m| (-m / typical).exp()).collect(),
                    at: 0,
                    regression: None,
                    wanted,
                };
                Some((name.clone(), fit))
            })
            .collect();
        Ok(Self { fits, weight: 1.0 })
    }

    fn finish(self, source: &Gguf) -> Result<BTreeMap<String, Vec<f32>>> {
        let mut routers = BTreeMap::new();
        for (name, fit) in self.fits {
            let (Some(tensor), Some(regression)) = (source.tensor(&name), fit.regression) else {
                continue;
            };
            if fit.at != fit.nearness.len() || !ggml::can_decode(tensor.ty) {
                continue;
            }
            let Some(add) = regression.solve() else {
                continue;
            };
            let rows = source.rows(tensor, 0..tensor.n_rows())?;
            let mut values = vec![0f32; add.len()];
            ggml::decode(tensor.ty, &rows, &mut values)
                .with_context(|| format!("tensor {name}"))?;
            for (v, a) in values.iter_mut().zip(&add) {
                *v += *a as f32;
            }
            routers.insert(name, values);
        }
        Ok(routers)
    }
}

impl Weighted for RouterPass<'_> {
    fn set_part(&mut self, _: usize, weight: f64) {
        self.weight = weight;
    }
}

/// The margin at which a token counts `1/e`, as a share of the mean margin.
const TYPICAL: f64 = 0.5;

impl Observer for RouterPass<'_> {
    fn wants(&mut self, node: Node<'_>) -> bool {
        node.is_mul_mat()
            && node.is_f32()
            && node
                .src(0)
                .is_some_and(|w| self.fits.contains_key(w.name()))
            && node.src(1).is_some_and(|x| x.is_f32())
    }

    fn observe(&mut self, node: Node<'_>) {
        let (Some(weight), Some(x)) = (node.src(0), node.src(1)) else {
            return;
        };
        let Some(fit) = self.fits.get_mut(weight.name()) else {
            return;
        };
        let (n_in, n_tokens) = (x.ne()[0], x.ne()[1]);
        let n = fit.n_expert;
        let first = fit.at;
        fit.at += n_tokens;
        let tokens: Option<Vec<Token<'_>>> = (0..n_tokens)
            .map(|i| {
                Some(Token {
                    input: x.row_f32(i, 0, 0)?,
                    logits: node.row_f32(i, 0, 0)?,
                    wanted: fit.wanted.get((first + i) * n..(first + i + 1) * n)?,
                    nearness: *fit.nearness.get(first + i)?,
                    weight: self.weight,
                })
            })
            .collect();
        if let Some(tokens) = tokens {
            fit.regression
                .get_or_insert_with(|| Regression::new(n_in, n))
                .add(&tokens);
        }
    }
}
