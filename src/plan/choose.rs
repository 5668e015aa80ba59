//! A packing for every tensor, and how far it can be from the best.

use super::experts::{Packing, Packings};
use super::knapsack::{self, Choice, KnapsackError, Solution};

/// What was chosen.
pub(super) struct Chosen {
    /// The way of each tensor, of [`Packings::ways`].
    pub solution: Solution,
    /// No choice has a smaller burden, of ways that were found or of others.
    pub bound: f64,
    /// Whether this one is proved to be the smallest.
    pub exact: bool,
}

/// Chooses for every tensor one of its ways, of the least burden together in at most `room` bytes.
///
/// # Errors
/// As [`knapsack::solve`].
pub(super) fn choose(items: &[&Packings], room: u64) -> Result<Chosen, KnapsackError> {
    let choice = |p: &Packing| Choice {
        bytes: p.bytes,
        cost: p.cost,
    };
    let ways = items.iter().map(|i| i.ways.iter().map(choice).collect());
    let solution = knapsack::solve(&ways.collect::<Vec<_>>(), room)?;
    if items.iter().all(|i| i.are_best()) {
        let (bound, exact) = (solution.bound, solution.exact);
        return Ok(Chosen {
            solution,
            bound,
            exact,
        });
    }
    let bounds: Vec<Vec<Choice>> = items.iter().map(|i| i.bounds.clone()).collect();
    let bound = knapsack::solve_quickly(&bounds, room)?.bound;
    Ok(Chosen {
        bound: bound.min(solution.cost),
        exact: false,
        solution,
    })
}

#[cfg(test)]
mod tests {
    use super::super::correlation::Pairs;
    use super::super::experts::{ExpertCosts, packings};
    use super::super::knapsack::tests::Rng;
    use super::*;
    use crate::analysis::Coactivation;
    use crate::gguf::{GgmlType, Shape};
    use crate::mixed::{block, carrier, shape};

    const ALIGNMENT: u64 = 32;
    const N_EXPERT: usize = 4;
    const TYPES: [GgmlType; 6] = [
        GgmlType::IQ1_S,
        GgmlType::Q2_K,
        GgmlType::Q3_K,
        GgmlType::Q4_K,
        GgmlType::Q8_0,
        GgmlType::F16,
    ];

    /// A tensor of few experts, of which everything can be tried.
    struct Small {
        dims: Shape,
        types: Vec<GgmlType>,
        costs: ExpertCosts,
        pairs: Option<Pairs>,
    }

    impl Small {
        fn new(random: &mut Rng) -> Self {
            let n_rows = 1 + random.below(12);
            let dims = Shape::new(&[256, n_rows, N_EXPERT as u64]).unwrap();
            let first = random.below(TYPES.len() as u64 - 1) as usize;
            let types = TYPES[first..]
                .iter()
                .copied()
                .step_by(1 + random.below(2) as usize);
            let types: Vec<GgmlType> = types.take(2 + random.below(2) as usize).collect();
            // Larger types mostly cost less.
            let costs: Vec<Vec<f64>> = (0..N_EXPERT)
                .map(|_| {
                    let hard = random.unit().powi(3);
                    let mut cost =
                        |ty: &GgmlType| hard * (-0.3 * ty.bpw()).exp() * (0.5 + random.unit());
                    types.iter().map(&mut cost).collect()
                })
                .collect();
            let amplitudes = costs
                .iter()
                .map(|c| c.iter().map(|c| c.sqrt() * random.unit()).collect())
                .collect();
            let mut measured = Coactivation::new(N_EXPERT);
            measured.outputs = vec![1.0; N_EXPERT * N_EXPERT];
            let strength = 4.0 * random.unit();
            for a in 0..N_EXPERT {
                for b in 0..a {
                    let product = strength * (random.unit() - 0.6);
                    measured.outputs[a * N_EXPERT + b] = product;
                    measured.outputs[b * N_EXPERT + a] = product;
                }
            }
            Self {
                dims,
                types,
                costs: ExpertCosts { costs, amplitudes },
                pairs: (random.unit() < 0.7)
                    .then(|| Pairs::new(&measured))
                    .flatten(),
            }
        }

        fn packings(&self, mix: bool) -> Packings {
            let (dims, pairs) = (&self.dims, self.pairs.as_ref());
            packings(dims, &self.types, &self.costs, pairs, ALIGNMENT, mix).unwrap()
        }

        /// Bytes and burden of every way to store it.
        fn all(&self, mix: bool) -> Vec<Choice> {
            let n = self.types.len();
            let each = (0..n.pow(N_EXPERT as u32)).map(|i| {
                let digit = |e: usize| i / n.pow(e as u32) % n;
                (0..N_EXPERT).map(digit).collect::<Vec<usize>>()
            });
            each.filter(|picks| mix || picks.iter().all(|p| *p == picks[0]))
                .filter_map(|picks| {
                    let own: f64 = (0..N_EXPERT).map(|e| self.costs.costs[e][picks[e]]).sum();
                    let amplitudes: Vec<f64> = (0..N_EXPERT)
                        .map(|e| self.costs.amplitudes[e][picks[e]])
                        .collect();
                    let pairs = self.pairs.as_ref().map_or(0.0, |p| p.total(&amplitudes));
                    let bytes = self.dims.n_bytes(self.stated(&picks)?).unwrap();
                    Some(Choice {
                        bytes: bytes.next_multiple_of(ALIGNMENT),
                        cost: (own + pairs).max(0.0),
                    })
                })
                .collect()
        }

        /// The type that the file states.
        fn stated(&self, picks: &[usize]) -> Option<GgmlType> {
            if picks.iter().all(|p| *p == picks[0]) {
                return Some(self.types[picks[0]]);
            }
            let ids: Vec<u32> = picks.iter().map(|p| self.types[*p].id()).collect();
            let layout = moqa_mixed::Layout::new(shape(&self.dims), &ids, block).unwrap();
            carrier::carrier(&self.dims, layout.sealed_bytes())
        }
    }

    #[test]
    fn no_choice_undercuts_the_bound() {
        let mut random = Rng(0x2545_F491_4F6C_DD1D);
        let (mut proved, mut better, mut unproved) = (0, 0, 0);
        for round in 0..400 {
            let mix = round % 8 != 0;
            let items = [Small::new(&mut random), Small::new(&mut random)];
            let found = [items[0].packings(mix), items[1].packings(mix)];
            let all = [items[0].all(mix), items[1].all(mix)];
            let least: u64 = found.iter().map(|f| f.ways[0].bytes).sum();
            for step in 0..6 {
                let room = least + least * step / 8;
                let chosen = choose(&[&found[0], &found[1]], room).unwrap();
                let mut optimum = f64::INFINITY;
                for a in &all[0] {
                    for b in all[1].iter().filter(|b| a.bytes + b.bytes <= room) {
                        optimum = optimum.min(a.cost + b.cost);
                    }
                }
                let cost = chosen.solution.cost;
                let (below, above) = (optimum * (1.0 - 1e-9), optimum * (1.0 + 1e-9));
                assert!(chosen.bound <= above, "{} > {optimum}", chosen.bound);
                assert!(cost >= below, "{cost} < {optimum}");
                if chosen.exact {
                    assert!(cost <= above && chosen.bound >= below, "{round}");
                    proved += usize::from(mix);
                } else {
                    unproved += 1;
                    better += usize::from(cost > above);
                }
            }
        }
        // All of these are there, or nothing was tested.
        println!("{proved} proved, {unproved} not, {better} of these not the best");
        assert!(proved > 0 && better > 0 && unproved > better);
    }

    #[test]
    fn a_limit_leaves_a_bound_for_what_it_leaves() {
        let mut random = Rng(0x9E37_79B9_7F4A_7C15);
        for _ in 0..100 {
            let item = Small::new(&mut random);
            let mut found = item.packings(true);
            let bytes = found.ways[random.below(found.ways.len() as u64) as usize].bytes;
            found.limit(bytes);
            assert_eq!(found.ways.last().unwrap().bytes, bytes);
            for way in item.all(true).iter().filter(|w| w.bytes <= bytes) {
                let above = way.cost * (1.0 + 1e-9);
                let mut bounds = found.bounds.iter();
                assert!(bounds.any(|b| b.bytes <= way.bytes && b.cost <= above));
            }
        }
    }
}
