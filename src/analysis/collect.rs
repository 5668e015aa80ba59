//! One pass of the calibration text through the model: activation statistics of every weight, and what the
//! routers did.

use std::collections::BTreeMap;

use anyhow::{Result, bail, ensure};
use rayon::prelude::*;

use super::stats::{Analysis, Coactivation, RouterStats, WeightStats};
use crate::model::layer_of;
use crate::progress::Bar;
use crate::runtime::{Context, ContextOptions, Model, Node, Observer};

/// How the pass is made.
#[derive(Clone, Debug)]
pub struct CollectOptions {
    /// Tokens of a chunk.
    pub n_ctx: usize,
    /// Worker threads.
    pub n_threads: usize,
}

/// Evaluates `chunks` (each of one length, at most `n_ctx` tokens) and gathers statistics; `bar` counts chunks. The origin of the
/// result is left to the caller.
///
/// # Errors
/// The model cannot be evaluated, or gives values that are not finite.
pub fn collect(
    model: &Model,
    chunks: &[Vec<i32>],
    options: &CollectOptions,
    bar: &Bar,
) -> Result<Analysis> {
    let mut context_options =
        ContextOptions::for_chunks(options.n_ctx, model.vocab().n_tokens(), options.n_threads);
    context_options.observable = true;
    let n_seq = context_options.n_seq;
    let mut context = Context::new(model, context_options)?;
    let mut collector = Collector::default();
    for group in chunks.chunks(n_seq) {
        let sequences: Vec<&[i32]> = group.iter().map(Vec::as_slice).collect();
        // Outputs of all positions, so that the output projection sees every token.
        context.evaluate(&sequences, 0, Some(&mut collector))?;
        if let Some(problem) = collector.problem.take() {
            bail!("{}: {problem}", model.path().display());
        }
        bar.inc(group.len() as u64);
    }
    collector.finish(chunks.len(), options.n_ctx)
}

struct Sums {
    n_in: usize,
    counts: Vec<f64>,
    sum_sq: Vec<f64>,
    sum: Vec<f64>,
}

impl Sums {
    fn new(n_in: usize, n_mat: usize, n_counts: usize) -> Self {
        Self {
            n_in,
            counts: vec![0.0; n_counts],
            sum_sq: vec![0.0; n_in * n_mat],
            sum: vec![0.0; n_in * n_mat],
        }
    }
}

#[derive(Default)]
struct Collector {
    weights: BTreeMap<String, Sums>,
    routers: BTreeMap<usize, RouterStats>,
    coactivation: BTreeMap<usize, Coactivation>,
    /// Gate weights of the layer being computed, `n_used` a token: the latest `ffn_moe_weights*` node.
    gates: Option<(usize, Vec<f32>)>,
    /// The same, kept until the layer's experts have answered.
    answered: Option<(usize, Vec<f32>)>,
    problem: Option<String>,
}

/// The layer of a node named `stem-N`.
fn layer_of_node(name: &str) -> Option<usize> {
    name.rsplit_once('-')?.1.parse().ok()
}

fn is_measured_weight(name: &str) -> bool {
    name.ends_with(".weight")
        && (name.starts_with("blk.") || name == "output.weight" || name == "token_embd.weight")
}

impl Observer for Collector {
    fn wants(&mut self, node: Node<'_>) -> bool {
        if self.problem.is_some() {
            return false;
        }
        if node.name().starts_with("ffn_moe_weights") {
            return true;
        }
        (node.is_mul_mat() || node.is_mul_mat_id())
            && node.src(0).is_some_and(|w| is_measured_weight(w.name()))
            && node.src(1).is_some_and(|x| x.is_f32())
    }

    fn observe(&mut self, node: Node<'_>) {
        let name = node.name();
        if name.starts_with("ffn_moe_weights") && !node.is_mul_mat() && !node.is_mul_mat_id() {
            self.keep_gates(node);
        } else if node.is_mul_mat_id() {
            if let Err(e) = self.add_experts(node) {
                self.problem = Some(format!("node {name}: {e}"));
            }
        } else if let Err(e) = self.add_dense(node) {
            self.problem = Some(format!("node {name}: {e}"));
        }
    }
}

impl Collector {
    /// Gate weights come as [1, n_used, n_tokens] or, normalised, as [n_used, n_tokens]; sums over the
    /// experts, [1, n_tokens], are named alike and passed over.
    fn keep_gates(&mut self, node: Node<'_>) {
        let (Some(layer), true) = (layer_of_node(node.name()), node.is_f32()) else {
            return;
        };
        if node.name().starts_with("ffn_moe_weights_sum") {
            return;
        }
        let ne = node.ne();
        let mut values = Vec::with_capacity(ne[0] * ne[1] * ne[2]);
        for i2 in 0..ne[2] {
            for i1 in 0..ne[1] {
                match node.row_f32(i1, i2, 0) {
                    Some(row) => values.extend_from_slice(row),
                    None => return,
                }
            }
        }
        self.gates = Some((layer, values));
    }

    fn add_experts(&mut self, node: Node<'_>) -> Result<()> {
        let (Some(weight), Some(x), Some(ids)) = (node.src(0), node.src(1), node.src(2)) else {
            bail!("a source is missing");
        };
        let (n_expert, [n_used, n_tokens, ..]) = (weight.ne()[2], ids.ne());
        let [n_in, n_x, x_tokens, _] = x.ne();
        ensure!(
            x_tokens == n_tokens && n_x > 0,
            "activations of {x_tokens} tokens for ids of {n_tokens}"
        );
        // Rows of x per expert, so that experts can be summed in parallel.
        let mut routed: Vec<Vec<(usize, usize)>> = vec![Vec::new(); n_expert];
        for token in 0..n_tokens {
            let Some(row) = ids.row_i32(token, 0, 0) else {
                bail!("expert ids are not readable")
            };
            for (slot, &id) in row.iter().enumerate() {
                let Some(list) = usize::try_from(id).ok().and_then(|e| routed.get_mut(e)) else {
                    bail!("expert id {id} of {n_expert}");
                };
                list.push((slot % n_x, token));
            }
        }
        let sums = self
            .weights
            .entry(weight.name().to_owned())
            .or_insert_with(|| Sums::new(n_in, n_expert, n_expert));
        ensure!(
            sums.n_in == n_in && sums.counts.len() == n_expert,
            "the shape of {} changed",
            weight.name()
        );
        sums.counts
            .par_iter_mut()
            .zip(sums.sum_sq.par_chunks_mut(n_in))
            .zip(sums.sum.par_chunks_mut(n_in))
            .zip(&routed)
            .try_for_each(|(((count, sq), sum), rows)| {
                for &(i1, i2) in rows {
                    let Some(row) = x.row_f32(i1, i2, 0) else {
                        bail!("activations are not readable")
                    };
                    accumulate(row, sq, sum);
                    *count += 1.0;
                }
                ensure!(
                    sq.iter().all(|v| v.is_finite()),
                    "activations of {} are not finite",
                    weight.name()
                );
                Ok(())
            })?;
        self.add_router(&weight, &routed, n_used, n_tokens, ids);
        if weight.name().contains("ffn_down_exps") {
            self.add_outputs(&weight, node, n_used, n_tokens, ids);
        }
        Ok(())
    }

    /// Scalar products of the outputs that each token's experts give, times their gate weights.
    fn add_outputs(
        &mut self,
        weight: &Node<'_>,
        output: Node<'_>,
        n_used: usize,
        n_tokens: usize,
        ids: Node<'_>,
    ) {
        let Some((layer, gates)) = self.answered.take() else {
            return;
        };
        let together = match self.coactivation.get_mut(&layer) {
            Some(t)
                if layer_of(weight.name()) == Some(layer) && gates.len() == n_used * n_tokens =>
            {
                t
            }
            _ => return,
        };
        let n = together.n_expert;
        if together.outputs.is_empty() {
            together.outputs = vec![0.0; n * n];
        }
        for token in 0..n_tokens {
            let Some(ids) = ids.row_i32(token, 0, 0) else {
                return;
            };
            for (i, &a) in ids.iter().enumerate() {
                for (j, &b) in ids.iter().enumerate().skip(i) {
                    let (Some(x), Some(y)) =
                        (output.row_f32(i, token, 0), output.row_f32(j, token, 0))
                    else {
                        return;
                    };
                    let gate = |slot: usize| f64::from(gates[token * n_used + slot]);
                    let product = gate(i) * gate(j) * dot(x, y);
                    let (a, b) = (a as usize, b as usize);
                    together.outputs[a * n + b] += product;
                    if i != j {
                        together.outputs[b * n + a] += product;
                    }
                }
            }
        }
    }

    /// Counts routing once a layer: at the expert multiplication that comes first with its gates known.
    fn add_router(
        &mut self,
        weight: &Node<'_>,
        routed: &[Vec<(usize, usize)>],
        n_used: usize,
        n_tokens: usize,
        ids: Node<'_>,
    ) {
        let Some(layer) = layer_of(weight.name()) else {
            return;
        };
        if !(weight.name().contains("ffn_gate") || weight.name().contains("ffn_up")) {
            return;
        }
        let Some((gate_layer, gates)) = &self.gates else {
            return;
        };
        if *gate_layer != layer || gates.len() != n_used * n_tokens {
            return;
        }
        let router = self
            .routers
            .entry(layer)
            .or_insert_with(|| RouterStats::new(routed.len(), n_used));
        for token in 0..n_tokens {
            for (slot, &id) in ids.row_i32(token, 0, 0).into_iter().flatten().enumerate() {
                let gate = f64::from(gates[token * n_used + slot]);
                let e = id as usize;
                router.counts[e] += 1.0;
                router.gate_mass[e] += gate;
                router.gate_mass_sq[e] += gate * gate;
            }
        }
        let together = self
            .coactivation
            .entry(layer)
            .or_insert_with(|| Coactivation::new(routed.len()));
        for token in 0..n_tokens {
            let experts: Vec<usize> = ids
                .row_i32(token, 0, 0)
                .into_iter()
                .flatten()
                .map(|&id| id as usize)
                .collect();
            together.add(&experts);
        }
        router.tokens += n_tokens as f64;
        // The layer's other projections see the same routing.
        self.answered = self.gates.take();
    }

    fn add_dense(&mut self, node: Node<'_>) -> Result<()> {
        let (Some(weight), Some(x)) = (node.src(0), node.src(1)) else {
            bail!("a source is missing")
        };
        let [n_in, rows, x2, x3] = x.ne();
        let [_, _, w2, w3] = weight.ne();
        let n_mat = w2 * w3;
        let sums = self
            .weights
            .entry(weight.name().to_owned())
            .or_insert_with(|| Sums::new(n_in, n_mat, 1));
        ensure!(
            sums.n_in == n_in && sums.sum_sq.len() == n_in * n_mat,
            "the shape of {} changed",
            weight.name()
        );
        for i3 in 0..x3 {
            for i2 in 0..x2 {
                let mat = (i3 % w3) * w2 + i2 % w2;
                let sq = &mut sums.sum_sq[mat * n_in..(mat + 1) * n_in];
                let sum = &mut sums.sum[mat * n_in..(mat + 1) * n_in];
                for i1 in 0..rows {
                    let Some(row) = x.row_f32(i1, i2, i3) else {
                        bail!("activations are not readable")
                    };
                    accumulate(row, sq, sum);
                }
            }
        }
        ensure!(
            sums.sum_sq.iter().all(|v| v.is_finite()),
            "activations of {} are not finite",
            weight.name()
        );
        sums.counts[0] += (rows * x2 * x3) as f64 / n_mat as f64;
        Ok(())
    }

    fn finish(self, n_chunks: usize, n_ctx: usize) -> Result<Analysis> {
        let mut analysis = Analysis {
            routers: self.routers,
            coactivation: self.coactivation,
            ..Analysis::default()
        };
        analysis.origin.n_chunks = n_chunks;
        analysis.origin.n_ctx = n_ctx;
        for (name, s) in self.weights {
            let narrow = |v: Vec<f64>| v.into_iter().map(|x| x as f32).collect::<Vec<f32>>();
            let stats = WeightStats {
                n_in: s.n_in,
                counts: s.counts,
                sum_sq: narrow(s.sum_sq),
                sum: narrow(s.sum),
            };
            stats
                .check()
                .map_err(|e| e.context(format!("tensor {name}")))?;
            analysis.weights.insert(name, stats);
        }
        Ok(analysis)
    }
}

fn dot(x: &[f32], y: &[f32]) -> f64 {
    // Partial sums, so that it can be done in vectors.
    let mut sums = [0.0f32; 8];
    for (x, y) in x.chunks(8).zip(y.chunks(8)) {
        for ((s, x), y) in sums.iter_mut().zip(x).zip(y) {
            *s += x * y;
        }
    }
    sums.iter().map(|s| f64::from(*s)).sum()
}

fn accumulate(row: &[f32], sum_sq: &mut [f64], sum: &mut [f64]) {
    for ((x, sq), s) in row.iter().zip(sum_sq).zip(sum) {
        let x = f64::from(*x);
        *sq += x * x;
        *s += x;
    }
}
