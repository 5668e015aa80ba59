//! A type for each expert of one merged tensor: what fits a carrier, and which of it is best.

use anyhow::{Context, Result};
use rayon::prelude::*;

use super::correlation::Pairs;
use super::knapsack::{self, Choice};
use crate::gguf::{GgmlType, TensorInfo};
use crate::mixed::{self, carrier};

/// An expert's types with what each costs.
pub(super) struct ExpertCosts {
    /// By expert and type: burden.
    pub costs: Vec<Vec<f64>>,
    /// By expert and type: the square root of the burden that the systematic part of the error has, times the root of its error; what [`Pairs`] multiplies.
    pub amplitudes: Vec<Vec<f64>>,
}

/// A way to store a merged tensor.
#[derive(Clone, Debug)]
pub(super) struct Packing {
    /// Bytes in the file.
    pub bytes: u64,
    /// Burden of all experts, pairs included.
    pub cost: f64,
    /// No choice of these bytes has a smaller burden.
    pub bound: f64,
    /// The type of each expert, by its number among the types; all the same when the tensor is not mixed.
    pub picks: Vec<usize>,
}

/// The best packing for every size that the tensor can have, by size; every one better than all smaller ones. With `mix`
/// experts may differ.
///
/// # Errors
/// The costs cannot be used.
pub(super) fn packings(
    tensor: &TensorInfo,
    types: &[GgmlType],
    costs: &ExpertCosts,
    pairs: Option<&Pairs>,
    alignment: u64,
    mix: bool,
) -> Result<Vec<Packing>> {
    let n_expert = costs.costs.len();
    let shape = mixed::shape(tensor);
    let total = |picks: &[usize]| {
        let own: f64 = picks.iter().zip(&costs.costs).map(|(p, c)| c[*p]).sum();
        let together = pairs.map_or(0.0, |pairs| pairs.total(&amplitudes(costs, picks)));
        (own + together).max(0.0)
    };
    // What pairs can take off at most.
    let least_pairs = pairs.map_or(0.0, |pairs| {
        let largest: Vec<f64> = costs
            .amplitudes
            .iter()
            .map(|a| a.iter().copied().fold(0.0, f64::max))
            .collect();
        pairs.least(&largest)
    });
    let mut all: Vec<Packing> = types
        .iter()
        .enumerate()
        .filter_map(|(i, ty)| {
            let row = ty.row_bytes(tensor.ne(0))?;
            let picks = vec![i; n_expert];
            let cost = total(&picks);
            Some(Packing {
                bytes: (row * tensor.n_rows()).next_multiple_of(alignment),
                cost,
                bound: cost,
                picks,
            })
        })
        .collect();
    if mix && n_expert > 1 {
        let sizes: Vec<Option<u64>> = types
            .iter()
            .map(|ty| moqa_mixed::expert_bytes(shape, mixed::block(ty.id())?))
            .collect();
        let options: Vec<Vec<Choice>> = costs
            .costs
            .iter()
            .map(|c| {
                c.iter()
                    .zip(&sizes)
                    .map(|(cost, bytes)| Choice {
                        bytes: bytes.unwrap_or(u64::MAX / 4),
                        cost: *cost,
                    })
                    .collect()
            })
            .collect();
        let overhead = moqa_mixed::header_bytes(shape.n_expert) + moqa_mixed::SEAL_BYTES;
        let found = carrier::carriers(&tensor.dims)
            .into_par_iter()
            .map(|(_, bytes)| -> Result<Option<Packing>> {
                let Some(room) = bytes.checked_sub(overhead) else {
                    return Ok(None);
                };
                let solution = match knapsack::solve_quickly(&options, room) {
                    Ok(s) => s,
                    Err(knapsack::KnapsackError::TooSmall { .. }) => return Ok(None),
                    Err(e) => return Err(e.into()),
                };
                let mut picks = solution.picks;
                if let Some(pairs) = pairs {
                    exchange(&mut picks, &options, costs, pairs, room);
                }
                let first = picks.first().context("no experts")?;
                if picks.iter().all(|p| p == first) {
                    // As an ordinary tensor it is among the others.
                    return Ok(None);
                }
                Ok(Some(Packing {
                    bytes: bytes.next_multiple_of(alignment),
                    cost: total(&picks),
                    bound: (solution.bound + least_pairs).max(0.0),
                    picks,
                }))
            })
            .collect::<Result<Vec<_>>>()?;
        all.extend(found.into_iter().flatten());
    }
    all.sort_by(|a, b| {
        (a.bytes, a.cost)
            .partial_cmp(&(b.bytes, b.cost))
            .unwrap_or(std::cmp::Ordering::Equal)
    });
    let mut best = f64::INFINITY;
    all.retain(|p| {
        let better = p.cost < best;
        best = best.min(p.cost);
        better
    });
    Ok(all)
}

fn amplitudes(costs: &ExpertCosts, picks: &[usize]) -> Vec<f64> {
    picks
        .iter()
        .zip(&costs.amplitudes)
        .map(|(p, a)| a[*p])
        .collect()
}

/// Rounds of [`exchange`].
const ROUNDS: usize = 8;

/// Improves picks under the whole objective: experts take the next larger or smaller type, alone or two at a time in
/// opposite directions, as long as that helps and there is room.
fn exchange(
    picks: &mut [usize],
    options: &[Vec<Choice>],
    costs: &ExpertCosts,
    pairs: &Pairs,
    room: u64,
) {
    let mut used: u64 = picks.iter().zip(options).map(|(p, o)| o[*p].bytes).sum();
    let mut now = amplitudes(costs, picks);
    let mut fields: Vec<f64> = (0..picks.len()).map(|e| pairs.field(e, &now)).collect();
    // Neighbours by size, of each type of each expert.
    let neighbours = |e: usize, pick: usize| {
        let bytes = options[e][pick].bytes;
        let up = (0..options[e].len())
            .filter(|&i| options[e][i].bytes > bytes)
            .min_by_key(|&i| options[e][i].bytes);
        let down = (0..options[e].len())
            .filter(|&i| options[e][i].bytes < bytes)
            .max_by_key(|&i| options[e][i].bytes);
        let other = (0..options[e].len()).find(|&i| i != pick && options[e][i].bytes == bytes);
        [up, down, other]
    };
    for _ in 0..ROUNDS {
        let mut changed = false;
        for a in 0..picks.len() {
            for b in a..picks.len() {
                let mut best: Option<(f64, Option<usize>, Option<usize>)> = None;
                let moves_a = neighbours(a, picks[a]);
                let moves_b: [Option<usize>; 3] = if a == b {
                    [None; 3]
                } else {
                    neighbours(b, picks[b])
                };
                let delta = |e: usize, to: usize| {
                    let da = costs.amplitudes[e][to] - now[e];
                    (
                        costs.costs[e][to] - costs.costs[e][picks[e]] + da * fields[e],
                        da,
                        options[e][to].bytes as i128 - options[e][picks[e]].bytes as i128,
                    )
                };
                for &to_a in moves_a.iter().flatten() {
                    let (ca, da, sa) = delta(a, to_a);
                    if a == b {
                        if i128::from(used) + sa <= i128::from(room)
                            && ca < best.as_ref().map_or(-1e-15, |x| x.0)
                        {
                            best = Some((ca, Some(to_a), None));
                        }
                        continue;
                    }
                    for &to_b in moves_b.iter().flatten() {
                        let (cb, db, sb) = delta(b, to_b);
                        let cost = ca + cb + da * db * pairs.of(a, b);
                        if i128::from(used) + sa + sb <= i128::from(room)
                            && cost < best.as_ref().map_or(-1e-15, |x| x.0)
                        {
                            best = Some((cost, Some(to_a), Some(to_b)));
                        }
                    }
                }
                let Some((_, to_a, to_b)) = best else {
                    continue;
                };
                changed = true;
                for (e, to) in [(a, to_a), (b, to_b)] {
                    let Some(to) = to else { continue };
                    used = used - options[e][picks[e]].bytes + options[e][to].bytes;
                    let da = costs.amplitudes[e][to] - now[e];
                    now[e] += da;
                    picks[e] = to;
                    for (other, field) in fields.iter_mut().enumerate() {
                        *field += da * pairs.of(e, other);
                    }
                }
            }
        }
        if !changed {
            break;
        }
    }
}
