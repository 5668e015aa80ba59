//! The one entry to the kernels: checks, then the path that was asked for.

use std::ops::Range;

use crate::{Error, Isa, Weights, error::at_least, reference};

/// Memory that kernels keep between calls; one for each thread.
#[derive(Default)]
pub struct Scratch {
    #[cfg(target_arch = "x86_64")]
    buffers: crate::x86::Buffers,
}

impl Scratch {
    pub fn new() -> Scratch {
        Scratch::default()
    }
}

/// What the kernels get: everything checked.
pub(crate) struct Job<'a> {
    pub weights: &'a Weights<'a>,
    pub rows: Range<usize>,
    pub acts: &'a [u8],
    /// Bytes of one activation row.
    pub act_bytes: usize,
    pub act_rows: &'a [u32],
}

impl<'a> Job<'a> {
    /// The activation row of output row `t`.
    pub fn activation(&self, t: usize) -> &'a [u8] {
        &self.acts[self.act_rows[t] as usize * self.act_bytes..][..self.act_bytes]
    }

    /// The `N` weight rows from the job's row `first` on; past the last one again the last one, to be computed and
    /// dropped.
    #[cfg(target_arch = "x86_64")]
    #[inline]
    pub fn weight_rows<const N: usize>(&self, first: usize) -> [&'a [u8]; N] {
        let last = self.rows.len() - 1;
        std::array::from_fn(|i| self.weights.row(self.rows.start + (first + i).min(last)))
    }
}

/// Multiply rows of weights with rows of activations:
/// `out[t * rows.len() + (r - rows.start)] = weights[r] . acts[act_rows[t]]`
///
/// `acts` holds rows of `weights.ty().activation().row_bytes(weights.n_in())` bytes one after the other, as
/// [`crate::Activation::quantize_row`] writes them. `act_rows` may name a row any number of times.
///
/// Each element depends on its two rows only: not on the other rows of the call, and with block types
/// not on `isa` either.
///
/// # Errors
/// If the processor lacks `isa`, or the arguments do not fit together; then nothing is written.
pub fn matmul(
    isa: Isa,
    weights: &Weights,
    rows: Range<usize>,
    acts: &[u8],
    act_rows: &[u32],
    out: &mut [f32],
    scratch: &mut Scratch,
) -> Result<(), Error> {
    if !isa.is_available() {
        return Err(Error::Isa(isa));
    }
    weights.check_rows(&rows)?;
    let act_bytes = weights.ty().activation().row_bytes(weights.n_in());
    let n_act_rows = acts.len().checked_div(act_bytes).unwrap_or(usize::MAX);
    if let Some(&row) = act_rows.iter().find(|&&row| row as usize >= n_act_rows) {
        return Err(Error::ActivationRow {
            row,
            n_rows: n_act_rows,
        });
    }
    let n_out = rows.len().checked_mul(act_rows.len());
    at_least("output", out.len(), n_out)?;
    let out = &mut out[..rows.len() * act_rows.len()];
    if out.is_empty() {
        return Ok(());
    }
    let job = Job {
        weights,
        rows,
        acts,
        act_bytes,
        act_rows,
    };
    #[cfg(target_arch = "x86_64")]
    if crate::x86::matmul(isa, &job, out, &mut scratch.buffers) {
        return Ok(());
    }
    // Only the x86 kernels keep memory.
    #[cfg(not(target_arch = "x86_64"))]
    let Scratch {} = scratch;
    #[cfg(target_arch = "aarch64")]
    if crate::aarch64::matmul(isa, &job, out) {
        return Ok(());
    }
    scalar(&job, out);
    Ok(())
}

fn scalar(job: &Job, out: &mut [f32]) {
    let n_rows = job.rows.len();
    for (t, out) in out.chunks_exact_mut(n_rows).enumerate() {
        for (x, r) in out.iter_mut().zip(job.rows.clone()) {
            *x = reference::dot(job.weights, r, job.activation(t));
        }
    }
}
