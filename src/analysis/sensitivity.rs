//! What quantizing one tensor does to the model's output, measured: the tensor is exchanged for its
//! quantized form inside the loaded model, and the next-token distributions are compared with the
//! original's.

use anyhow::{Context as _, Result};
use rayon::prelude::*;

use super::exchange::Exchange;
use super::importance::Importance;
use crate::ggml;
use crate::gguf::{GgmlType, Gguf, TensorInfo};
use crate::metrics::TopK;
use crate::progress::Progress;
use crate::runtime::{Context, ContextOptions, Model, WeightHandles};

/// Mean KL divergence of the output when one tensor alone is quantized.
#[derive(Clone, Debug, PartialEq)]
pub struct Probe {
    /// Tensor name.
    pub tensor: String,
    /// The type it was quantized to.
    pub ty: GgmlType,
    /// Mean over positions of the KL divergence, in nats.
    pub kld: f64,
    /// The same for the text of each domain, in the order of [`super::Analysis::domains`]; empty when the text
    /// has no domains.
    pub by_domain: Vec<f64>,
}

/// Mean KL divergence of the output when several tensors are quantized at once.
#[derive(Clone, Debug, PartialEq)]
pub struct JointProbe {
    /// Their names.
    pub tensors: Vec<String>,
    /// The type they were quantized to.
    pub ty: GgmlType,
    /// Mean over positions of the KL divergence, in nats.
    pub kld: f64,
}

/// What is measured on what.
#[derive(Clone, Debug)]
pub struct SensitivityOptions {
    /// Worker threads.
    pub n_threads: usize,
    /// First position of a chunk whose output is compared.
    pub first_output: usize,
    /// The domain of each chunk, numbered from 0; empty without domains.
    pub domains: Vec<usize>,
    /// Tokens of each reference distribution that are compared one by one, the likeliest; the others as one. Takes 8
    /// bytes each.
    pub kept: usize,
}

/// [`SensitivityOptions::kept`] where much text is compared.
const KEPT_OF_MUCH: usize = 256;

impl SensitivityOptions {
    /// To measure on much text how domains differ: `chunks`, of the domains `domains`.
    pub fn by_domain(chunks: &[Vec<i32>], domains: Vec<usize>, n_threads: usize) -> Self {
        let longest = chunks.iter().map(Vec::len).max().unwrap_or(0);
        Self {
            n_threads,
            first_output: longest / 8,
            domains,
            kept: KEPT_OF_MUCH,
        }
    }
}

/// Mean KL divergence in nats, and that of each domain's text.
type Divergence = (f64, Vec<f64>);

/// Measures what quantizing tensors does to the output, by exchanging them inside a loaded model.
pub struct Sensitivity<'m, 'a> {
    bench: Bench<'m, 'a>,
    handles: WeightHandles<'m>,
    source: &'a Gguf,
    importance: &'a Importance,
    n_threads: usize,
}

impl<'m, 'a> Sensitivity<'m, 'a> {
    /// Evaluates the model as it is on `chunks`, all of one length, of which there must be one.
    ///
    /// # Errors
    /// There is no chunk, or the model cannot be evaluated.
    pub fn new(
        model: &'m Model,
        source: &'a Gguf,
        importance: &'a Importance,
        chunks: &'a [Vec<i32>],
        options: &'a SensitivityOptions,
    ) -> Result<Self> {
        let len = chunks.iter().map(Vec::len).max();
        let len = len.context("no text to measure effects on")?;
        let mut context_options =
            ContextOptions::for_chunks(len, model.vocab().n_tokens(), options.n_threads);
        context_options.n_seq = context_options.n_seq.min(chunks.len());
        let mut bench = Bench {
            chunks,
            first_output: options.first_output,
            domains: &options.domains,
            n_vocab: model.vocab().n_tokens(),
            n_seq: context_options.n_seq,
            kept: options.kept,
            context: Context::new(model, context_options)?,
            reference: Vec::new(),
        };
        let handles = WeightHandles::find(model)?;
        bench.reference = bench.distributions()?;
        Ok(Self {
            bench,
            handles,
            source,
            importance,
            n_threads: options.n_threads,
        })
    }

    /// Measures each of `wanted` (tensor, type) alone. Pairs whose tensor the graph does not use, or whose type needs
    /// importance data that is not there, are left out.
    ///
    /// # Errors
    /// The model cannot be evaluated, or a tensor cannot be quantized.
    pub fn measure(
        &mut self,
        wanted: &[(String, GgmlType)],
        progress: &Progress,
    ) -> Result<Vec<Probe>> {
        let bar = progress.bar("sensitivity", wanted.len() as u64, "measurements");
        let mut probes = Vec::with_capacity(wanted.len());
        for (tensor, ty) in wanted {
            if let Some((kld, by_domain)) = self.divergence(std::slice::from_ref(tensor), *ty)? {
                probes.push(Probe {
                    tensor: tensor.clone(),
                    ty: *ty,
                    kld,
                    by_domain,
                });
            }
            bar.inc(1);
        }
        bar.finish();
        Ok(probes)
    }

    /// Measures each of `wanted` (tensors, the type that all of them get) as [`Sensitivity::measure`] does.
    ///
    /// # Errors
    /// As [`Sensitivity::measure`].
    pub fn measure_joint(
        &mut self,
        wanted: &[(Vec<String>, GgmlType)],
        progress: &Progress,
    ) -> Result<Vec<JointProbe>> {
        let bar = progress.bar("sensitivity", wanted.len() as u64, "measurements");
        let mut probes = Vec::with_capacity(wanted.len());
        for (tensors, ty) in wanted {
            if let Some((kld, _)) = self.divergence(tensors, *ty)? {
                probes.push(JointProbe {
                    tensors: tensors.clone(),
                    ty: *ty,
                    kld,
                });
            }
            bar.inc(1);
        }
        bar.finish();
        Ok(probes)
    }

    /// The mean divergence of each domain's text, in nats, when all of `group` is quantized; empty where one tensor
    /// cannot, or the text has no domains.
    ///
    /// # Errors
    /// As [`Sensitivity::measure`].
    pub fn measure_by_domain(&mut self, group: &(Vec<String>, GgmlType)) -> Result<Vec<f64>> {
        let measured = self.divergence(&group.0, group.1)?;
        Ok(measured.map_or_else(Vec::new, |(_, by_domain)| by_domain))
    }

    /// The mean divergence, in nats, of each domain's text with the model as it is now: whoever holds other handles may have
    /// exchanged tensors. Empty if the text has no domains.
    ///
    /// # Errors
    /// The model cannot be evaluated.
    pub fn by_domain(&mut self) -> Result<Vec<f64>> {
        Ok(self.bench.divergence()?.1)
    }

    /// The divergence when all of `names` have type `ty`; `None` where one of them cannot.
    fn divergence(&mut self, names: &[String], ty: GgmlType) -> Result<Option<Divergence>> {
        let tensors = names
            .iter()
            .map(|name| {
                self.source
                    .tensor(name)
                    .with_context(|| format!("tensor {name}: not in the model"))
            })
            .collect::<Result<Vec<_>>>()?;
        let possible = |t: &&TensorInfo| {
            self.handles.contains(&t.name) && can_quantize(t, ty, self.importance)
        };
        if !tensors.iter().all(possible) {
            return Ok(None);
        }
        let exact = Exchange {
            type_of: &|_| ty,
            finish: &|_, _, _| Ok(()),
            out_type: ty,
        };
        for tensor in &tensors {
            let bytes = exact
                .quantize(self.source, tensor, self.importance, self.n_threads)
                .with_context(|| {
                    format!(
                        "{}: tensor {}",
                        self.source.paths()[0].display(),
                        tensor.name
                    )
                })?;
            self.handles.replace(&tensor.name, ty, bytes)?;
        }
        let measured = self.bench.divergence();
        for tensor in &tensors {
            self.handles.restore(&tensor.name);
        }
        Ok(Some(measured?))
    }
}

struct Bench<'m, 'c> {
    context: Context<'m>,
    chunks: &'c [Vec<i32>],
    domains: &'c [usize],
    first_output: usize,
    n_vocab: usize,
    n_seq: usize,
    kept: usize,
    reference: Vec<TopK>,
}

impl Bench<'_, '_> {
    fn distributions(&mut self) -> Result<Vec<TopK>> {
        let mut all = Vec::new();
        let (n_vocab, kept) = (self.n_vocab, self.kept);
        self.for_each_chunk(|logits, _, _| {
            let rows = logits.chunks_exact(n_vocab);
            all.extend(rows.map(|row| TopK::new(row, kept)));
        })?;
        Ok(all)
    }

    /// The mean divergence, and each domain's.
    fn divergence(&mut self) -> Result<Divergence> {
        let reference = std::mem::take(&mut self.reference);
        let (n_vocab, domains) = (self.n_vocab, self.domains);
        let n_domains = domains.iter().max().map_or(0, |d| d + 1);
        let mut sums = vec![(0.0, 0usize); n_domains.max(1)];
        let outcome = self.for_each_chunk(|logits, chunk, first| {
            // Summed in order, so that the result does not depend on the threads.
            let values: Vec<f64> = logits
                .par_chunks_exact(n_vocab)
                .zip(&reference[first..])
                .map(|(row, p)| p.divergence(row))
                .collect();
            let sum = &mut sums[domains.get(chunk).copied().unwrap_or(0)];
            sum.0 += values.iter().sum::<f64>();
            sum.1 += values.len();
        });
        self.reference = reference;
        outcome?;
        let mean = |sum: f64, n: usize| (sum / n.max(1) as f64).max(0.0);
        let total = sums.iter().fold((0.0, 0), |t, s| (t.0 + s.0, t.1 + s.1));
        let overall = mean(total.0, total.1);
        // A domain without a chunk of its own is judged by all.
        let of = |s: &(f64, usize)| if s.1 > 0 { mean(s.0, s.1) } else { overall };
        let by_domain = if n_domains > 1 {
            sums.iter().map(of).collect()
        } else {
            Vec::new()
        };
        Ok((overall, by_domain))
    }

    /// Calls `f` with each chunk's logits, its number, and the number of its first row among all rows.
    fn for_each_chunk(&mut self, mut f: impl FnMut(&[f32], usize, usize)) -> Result<()> {
        let (mut row, mut chunk) = (0, 0);
        let alike = self.chunks.chunk_by(|a, b| a.len() == b.len());
        for group in alike.flat_map(|run| run.chunks(self.n_seq)) {
            let sequences: Vec<&[i32]> = group.iter().map(Vec::as_slice).collect();
            let first = self.first_output.min(sequences[0].len() - 1);
            for logits in self.context.evaluate(&sequences, first, None)? {
                f(logits, chunk, row);
                row += logits.len() / self.n_vocab;
                chunk += 1;
            }
        }
        Ok(())
    }
}

fn can_quantize(tensor: &TensorInfo, ty: GgmlType, importance: &Importance) -> bool {
    ty.row_bytes(tensor.ne(0)).is_some()
        && (!ggml::requires_importance(ty)
            || importance
                .of(&tensor.name, 0, tensor.ne(0) as usize)
                .is_some())
}
