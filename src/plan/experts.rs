//! A type for each expert of one merged tensor: what fits a carrier, and which of it is best.

use anyhow::{Context, Result};
use rayon::prelude::*;

use super::correlation::Pairs;
use super::knapsack::{self, Choice};
use crate::gguf::{GgmlType, Shape};
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
    /// The type of each expert, by its number among the types; all the same when the tensor is not mixed.
    pub picks: Vec<usize>,
}

/// The ways to store a merged tensor that are worth a choice.
#[derive(Clone, Debug)]
pub(super) struct Packings {
    /// The best one found for every size that the tensor can have, by size; every one better than all smaller ones.
    pub ways: Vec<Packing>,
    /// What no way undercuts, found or not: for each that there is, one of these has no more bytes and no larger burden.
    pub bounds: Vec<Choice>,
}

impl Packings {
    /// Leaves out what is larger than the first way of at least `bytes`.
    pub fn limit(&mut self, bytes: u64) {
        if let Some(largest) = self.ways.iter().map(|p| p.bytes).find(|b| *b >= bytes) {
            self.ways.retain(|p| p.bytes <= largest);
            self.bounds.retain(|b| b.bytes <= largest);
        }
    }

    /// Whether the ways that were found are as good as any that there are.
    pub fn are_best(&self) -> bool {
        let reached = |b: &Choice| {
            let mut ways = self.ways.iter();
            ways.any(|p| p.bytes <= b.bytes && p.cost <= b.cost)
        };
        self.bounds.iter().all(reached)
    }
}

/// The packings of a tensor of this shape. With `mix` experts may differ.
///
/// # Errors
/// The costs cannot be used.
pub(super) fn packings(
    dims: &Shape,
    types: &[GgmlType],
    costs: &ExpertCosts,
    pairs: Option<&Pairs>,
    alignment: u64,
    mix: bool,
) -> Result<Packings> {
    let n_expert = costs.costs.len();
    let shape = mixed::shape(dims);
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
            let row = ty.row_bytes(dims.ne(0))?;
            let picks = vec![i; n_expert];
            Some(Packing {
                bytes: (row * dims.n_rows()).next_multiple_of(alignment),
                cost: total(&picks),
                picks,
            })
        })
        .collect();
    let as_choice = |p: &Packing| Choice {
        bytes: p.bytes,
        cost: p.cost,
    };
    let mut bounds: Vec<Choice> = all.iter().map(as_choice).collect();
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
        let found = carrier::carriers(dims)
            .into_par_iter()
            .map(|(_, bytes)| -> Result<Option<(Packing, f64)>> {
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
                let cost = total(&picks);
                let bound = (solution.bound + least_pairs).max(0.0);
                let bytes = bytes.next_multiple_of(alignment);
                Ok(Some((Packing { bytes, cost, picks }, bound.min(cost))))
            })
            .collect::<Result<Vec<_>>>()?;
        for (packing, cost) in found.into_iter().flatten() {
            // Also where nothing better was found than what the tensor can be without.
            let bytes = packing.bytes;
            bounds.push(Choice { bytes, cost });
            let first = packing.picks.first().context("no experts")?;
            if packing.picks.iter().any(|p| p != first) {
                all.push(packing);
            }
            // Otherwise it is among the others, as an ordinary tensor.
        }
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
    Ok(Packings { ways: all, bounds })
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
