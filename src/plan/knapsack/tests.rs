use super::*;
use std::time::{Duration, Instant};

/// xorshift64*
pub(in crate::plan) struct Rng(pub u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    /// Between 0 and 1.
    pub fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
}

fn choice(bytes: u64, cost: f64) -> Choice {
    Choice { bytes, cost }
}

/// Kinds of small instances, each hard in its own way.
#[derive(Debug, Clone, Copy)]
enum Kind {
    General,
    /// Few distinct whole sizes and costs: ties, duplicates, dominated and free choices.
    Ties,
    /// Cost falls by one per byte: all slopes equal, as in subset sum.
    SubsetSum,
    /// As before with noise far below one byte's worth.
    NearSubsetSum,
    /// Bits per weight times element count, cost by the power law of rounding errors.
    Tensors,
    /// Costs over 600 orders of magnitude, sizes over 12.
    Extreme,
}

const KINDS: [Kind; 6] = [
    Kind::General,
    Kind::Ties,
    Kind::SubsetSum,
    Kind::NearSubsetSum,
    Kind::Tensors,
    Kind::Extreme,
];

const BITS: [f64; 20] = [
    1.5625, 1.75, 2.0625, 2.3125, 2.5625, 2.625, 3.0625, 3.4375, 3.5, 4.25, 4.5, 4.5625, 5.0, 5.5,
    5.5625, 6.0, 6.5625, 8.5, 16.0, 32.0,
];

fn tensor(rng: &mut Rng, elements: u64, types: usize) -> Vec<Choice> {
    let importance = (8.0 * rng.unit() - 4.0).exp() * elements as f64;
    (0..types)
        .map(|t| {
            let bits = BITS[t * BITS.len() / types];
            let cost = importance * (-1.386 * bits).exp() * (0.7 + 0.6 * rng.unit());
            choice((elements as f64 * bits / 8.0) as u64, cost)
        })
        .collect()
}

fn instance(rng: &mut Rng, kind: Kind, items: u64, choices: u64) -> Vec<Vec<Choice>> {
    (0..1 + rng.below(items))
        .map(|_| {
            let count = 1 + rng.below(choices);
            let one = |rng: &mut Rng| match kind {
                Kind::General => choice(rng.below(1000), rng.unit() * 100.0),
                Kind::Ties => choice(rng.below(6), rng.below(5) as f64),
                Kind::SubsetSum => {
                    let bytes = rng.below(200);
                    choice(bytes, (200 - bytes) as f64)
                }
                Kind::NearSubsetSum => {
                    let bytes = rng.below(200);
                    choice(bytes, (200 - bytes) as f64 + 0.1 * rng.unit())
                }
                Kind::Extreme => {
                    let bytes = 10f64.powf(12.0 * rng.unit()) as u64;
                    choice(bytes, 10f64.powf(600.0 * rng.unit() - 300.0))
                }
                Kind::Tensors => unreachable!("made as a whole"),
            };
            if let Kind::Tensors = kind {
                let elements = 256 << rng.below(4);
                tensor(rng, elements, count as usize)
            } else {
                (0..count).map(|_| one(rng)).collect()
            }
        })
        .collect()
}

fn extent(items: &[Vec<Choice>]) -> (u64, u64) {
    items.iter().fold((0, 0), |(low, high), choices| {
        let bytes = || choices.iter().map(|c| c.bytes);
        (low + bytes().min().unwrap(), high + bytes().max().unwrap())
    })
}

/// Least cost by trying everything, summed in item order.
fn brute_force(items: &[Vec<Choice>], budget: u64) -> Option<f64> {
    fn descend(items: &[Vec<Choice>], budget: u64, cost: f64, best: &mut Option<f64>) {
        let Some((first, rest)) = items.split_first() else {
            if best.is_none_or(|b| cost < b) {
                *best = Some(cost);
            }
            return;
        };
        for c in first.iter().filter(|c| c.bytes <= budget) {
            descend(rest, budget - c.bytes, cost + c.cost, best);
        }
    }
    let mut best = None;
    descend(items, budget, 0.0, &mut best);
    best
}

/// Least cost by dynamic programming over every budget up to `budget`.
fn by_budget(items: &[Vec<Choice>], budget: usize) -> f64 {
    let mut least = vec![0.0f64; budget + 1];
    for choices in items {
        least = (0..=budget)
            .map(|b| {
                let fitting = choices.iter().filter(|c| c.bytes as usize <= b);
                fitting
                    .map(|c| least[b - c.bytes as usize] + c.cost)
                    .fold(f64::INFINITY, f64::min)
            })
            .collect();
    }
    least[budget]
}

/// Checks everything that must hold of any solution.
fn check(items: &[Vec<Choice>], budget: u64, s: &Solution) {
    assert_eq!(s.picks.len(), items.len());
    let chosen = || s.picks.iter().zip(items).map(|(&p, item)| item[p]);
    let bytes: u128 = chosen().map(|c| u128::from(c.bytes)).sum();
    assert_eq!(u128::from(s.bytes), bytes);
    assert!(s.bytes <= budget, "{} > {budget}", s.bytes);
    assert_eq!(s.cost, chosen().fold(0.0, |sum, c| sum + c.cost));
    assert!(0.0 <= s.bound && s.bound <= s.cost, "{s:?}");
    assert!((0.0..=1.0).contains(&s.gap()));
    assert!(!s.exact || s.gap() == 0.0);
    // No part of the budget that buys an improvement by itself is left.
    let unused = budget - s.bytes;
    for (item, now) in items.iter().zip(chosen()) {
        for c in item {
            let fits = c.bytes <= now.bytes || c.bytes - now.bytes <= unused;
            assert!(
                !fits || c.cost >= now.cost * (1.0 - 1e-9) || now.cost - c.cost < 1e-12 * s.cost
            );
        }
    }
}

const ROUNDING: f64 = 1e-12;

#[test]
fn equals_brute_force() {
    let mut rng = Rng(0x9E37_79B9_7F4A_7C15);
    for round in 0..9000 {
        let kind = KINDS[round % KINDS.len()];
        let items = instance(&mut rng, kind, 6, 5);
        let (low, high) = extent(&items);
        let budget = low + rng.below(high - low + 3);
        let best = brute_force(&items, budget).unwrap();
        let s = solve(&items, budget).unwrap();
        check(&items, budget, &s);
        assert!(s.exact, "{kind:?} {items:?} {budget}");
        if matches!(kind, Kind::Ties | Kind::SubsetSum) {
            assert_eq!(s.cost, best, "{kind:?} {items:?} {budget}");
        }
        assert!(
            s.cost <= best * (1.0 + ROUNDING),
            "{kind:?} {s:?} {best} {items:?} {budget}"
        );
        assert!(s.bound <= best * (1.0 + ROUNDING));
        assert_eq!(solve(&items, budget).unwrap(), s);
    }
}

#[test]
fn below_minimum_exactly_when_nothing_fits() {
    let mut rng = Rng(77);
    for _ in 0..500 {
        let items = instance(&mut rng, Kind::Ties, 6, 5);
        let (low, _) = extent(&items);
        for budget in low.saturating_sub(2)..low + 2 {
            match solve(&items, budget) {
                Ok(_) => assert!(brute_force(&items, budget).is_some()),
                Err(e) => {
                    assert_eq!(brute_force(&items, budget), None);
                    assert_eq!(
                        e,
                        KnapsackError::TooSmall {
                            budget,
                            minimum: low
                        }
                    );
                }
            }
        }
    }
}

#[test]
fn equals_dynamic_programming_by_budget() {
    let mut rng = Rng(4242);
    for round in 0..120 {
        let size = [1, 1, 7, 64][round % 4];
        let items: Vec<Vec<Choice>> = (0..40)
            .map(|_| {
                let hard = round % 3 == 0;
                (0..8)
                    .map(|_| {
                        let bytes = (1 + rng.below(60)) * size;
                        let even = 64.0 - (bytes / size) as f64;
                        let cost = if hard { even } else { even * rng.unit() };
                        choice(bytes, cost + rng.below(3) as f64)
                    })
                    .collect()
            })
            .collect();
        let (low, high) = extent(&items);
        let budget = low + (high - low) * (1 + rng.below(19)) / 20 + rng.below(size);
        let best = by_budget(&items, budget as usize);
        let s = solve(&items, budget).unwrap();
        check(&items, budget, &s);
        assert!(s.exact);
        assert!(
            (s.cost - best).abs() <= ROUNDING * best,
            "{} {best}",
            s.cost
        );
    }
}

/// With next to no work allowed the answer is not optimal, but must keep its promises.
#[test]
fn bound_holds_when_the_search_is_cut_short() {
    let mut rng = Rng(31337);
    let (mut cut, mut improved, mut bettered) = (0, 0, 0);
    for round in 0..6000 {
        let kind = KINDS[round % KINDS.len()];
        let items = instance(&mut rng, kind, 7, 5);
        let (low, high) = extent(&items);
        let budget = low + rng.below(high - low + 1);
        let best = brute_force(&items, budget).unwrap();
        let relaxed = solve_with(&items, budget, &[]).unwrap();
        let beam = |min_states| Allowance {
            work: 0,
            min_states,
        };
        let one = solve_with(&items, budget, &[beam(1)]).unwrap();
        let two = solve_with(&items, budget, &[beam(1), beam(2)]).unwrap();
        for s in [&relaxed, &one, &two] {
            check(&items, budget, s);
            assert!(s.cost >= best * (1.0 - ROUNDING));
            assert!(s.bound <= best * (1.0 + ROUNDING), "{kind:?} {s:?} {best}");
            if s.exact {
                assert!(s.cost <= best * (1.0 + ROUNDING), "{kind:?} {s:?} {best}");
            }
        }
        assert!(one.cost <= relaxed.cost * (1.0 + ROUNDING));
        assert!(two.cost <= one.cost * (1.0 + ROUNDING));
        cut += usize::from(!one.exact);
        improved += usize::from(one.bound > relaxed.bound);
        bettered += usize::from(one.cost < relaxed.cost);
    }
    // The test would say nothing if the search were never cut short.
    assert!(cut > 100, "{cut}");
    assert!(improved > 100, "{improved}");
    assert!(bettered > 10, "{bettered}");
}

#[test]
fn more_budget_never_costs_more() {
    let mut rng = Rng(2024);
    for round in 0..150 {
        let items = instance(&mut rng, KINDS[round % KINDS.len()], 25, 8);
        let (low, high) = extent(&items);
        let mut before = f64::INFINITY;
        for step in 0..=30u64 {
            let budget = low + ((high - low) as u128 * u128::from(step) / 30) as u64;
            let s = solve(&items, budget).unwrap();
            check(&items, budget, &s);
            if s.exact {
                assert!(s.cost <= before * (1.0 + ROUNDING));
                before = s.cost;
            }
        }
    }
}

#[test]
fn takes_the_cheapest_then_smallest_then_first_under_a_huge_budget() {
    let items = vec![
        vec![
            choice(9, 2.0),
            choice(7, 1.0),
            choice(5, 1.0),
            choice(5, 1.0),
        ],
        vec![choice(3, 0.0), choice(4, 0.0)],
        vec![choice(8, 5.0)],
    ];
    for budget in [16, 17, u64::MAX] {
        let s = solve(&items, budget).unwrap();
        assert_eq!(s.picks, [2, 0, 0]);
        assert_eq!((s.bytes, s.cost, s.bound, s.exact), (16, 6.0, 6.0, true));
    }
}

#[test]
fn nothing_to_choose_costs_nothing() {
    let s = solve(&[], 0).unwrap();
    assert_eq!((s.picks.len(), s.bytes, s.cost, s.gap()), (0, 0, 0.0, 0.0));
    assert!(s.exact && s.cost.is_sign_positive());
    let free = vec![vec![choice(1, 0.0), choice(0, 0.0)]; 3];
    let s = solve(&free, 0).unwrap();
    assert_eq!((s.picks, s.cost, s.bytes), (vec![1, 1, 1], 0.0, 0));
}

#[test]
fn says_what_is_wrong() {
    let fine = vec![choice(10, 1.0), choice(20, 0.5)];
    let message = |items: &[Vec<Choice>], budget| solve(items, budget).unwrap_err().to_string();
    let text = message(&[fine.clone(), fine.clone()], 19);
    assert!(text.contains("19") && text.contains("20"), "{text}");
    let text = message(&[fine.clone(), vec![]], 100);
    assert!(text.contains("item 1"), "{text}");
    for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -1.0] {
        let text = message(&[fine.clone(), vec![choice(1, 0.0), choice(1, bad)]], 100);
        assert!(text.contains("choice 1 of item 1"), "{text}");
        assert!(text.contains(&bad.to_string()), "{text}");
    }
    let huge = vec![choice(1, f64::MAX)];
    let e = solve(&[huge.clone(), huge], 2).unwrap_err();
    assert_eq!(e, KnapsackError::CostOverflow);
    let vast = vec![choice(u64::MAX, 1.0)];
    let e = solve(&[vast.clone(), vast], u64::MAX).unwrap_err();
    let (budget, minimum) = (u64::MAX, u64::MAX);
    assert_eq!(e, KnapsackError::TooSmall { budget, minimum });
}

/// Any byte counts and any finite costs: no overflow, no panic, a feasible solution and a bound.
#[test]
fn survives_the_ends_of_both_ranges() {
    let mut rng = Rng(99);
    let (mut solved, mut inexact) = (0, 0);
    for _ in 0..4000 {
        let items: Vec<Vec<Choice>> = (0..1 + rng.below(5))
            .map(|_| {
                (0..1 + rng.below(5))
                    .map(|_| {
                        let bytes = rng.next() >> (rng.below(4) * rng.below(20));
                        // The exponent stays below the largest, so that eight costs can be summed.
                        let cost = f64::from_bits(rng.next() >> 1).min(f64::MAX / 8.0);
                        choice(bytes, if cost.is_nan() { 0.0 } else { cost })
                    })
                    .collect()
            })
            .collect();
        let budget = u64::MAX - (rng.next() >> rng.below(64));
        let Ok(s) = solve(&items, budget) else {
            assert_eq!(brute_force(&items, budget), None);
            continue;
        };
        check(&items, budget, &s);
        let best = brute_force(&items, budget).unwrap();
        assert!(s.bound <= best * (1.0 + ROUNDING), "{s:?} {best}");
        assert!(!s.exact || s.cost <= best * (1.0 + ROUNDING));
        solved += 1;
        inexact += usize::from(!s.exact);
    }
    assert!(solved > 1000, "{solved}");
    assert!(
        inexact > 0,
        "capacities beyond the core's limit were never reached"
    );
}

fn timed(items: &[Vec<Choice>], share: f64, most: Duration) -> Solution {
    let (low, high) = extent(items);
    let budget = low + ((high - low) as f64 * share) as u64;
    let start = Instant::now();
    let s = solve(items, budget).unwrap();
    let spent = start.elapsed();
    assert!(spent < most, "{spent:?}");
    check(items, budget, &s);
    s
}

#[test]
#[cfg_attr(debug_assertions, ignore = "timed; needs an optimised build")]
fn hundreds_of_tensors_are_exact_at_once() {
    let mut rng = Rng(5);
    let shapes = [
        2048 * 2048,
        2048 * 512,
        4096 * 2048,
        2048 * 128,
        2048 * 151_936,
        2048 * 768 * 128,
    ];
    for count in [300, 1000] {
        let items: Vec<_> = (0..count)
            .map(|i| tensor(&mut rng, shapes[i % shapes.len()], 15))
            .collect();
        for share in [0.02, 0.1, 0.3, 0.6] {
            let s = timed(&items, share, Duration::from_secs(5));
            assert!(s.exact, "gap {}", s.gap());
        }
    }
}

#[test]
#[cfg_attr(debug_assertions, ignore = "timed; needs an optimised build")]
fn every_expert_of_a_large_model() {
    let mut rng = Rng(6);
    let experts = 48 * 128 * 3;
    let items: Vec<_> = (0..experts)
        .map(|i| tensor(&mut rng, [2048 * 768, 2048 * 768, 4096 * 768][i % 3], 20))
        .collect();
    for share in [0.03, 0.2] {
        let s = timed(&items, share, Duration::from_secs(15));
        assert!(s.gap() < 1e-5, "gap {}", s.gap());
        assert_eq!(timed(&items, share, Duration::from_secs(15)), s);
    }
}

/// All experts alike: no bound tells them apart, so the search runs into its allowance.
#[test]
#[cfg_attr(debug_assertions, ignore = "timed; needs an optimised build")]
fn every_expert_alike() {
    let mut rng = Rng(7);
    let shapes =
        [2048 * 768, 2048 * 1024, 4096 * 768 + 256, 2048 * 128].map(|n| tensor(&mut rng, n, 20));
    let items: Vec<_> = (0..48 * 128 * 3).map(|i| shapes[i % 4].clone()).collect();
    for share in [0.03, 0.2] {
        let s = timed(&items, share, Duration::from_secs(20));
        assert!(s.gap() < 1e-4, "gap {}", s.gap());
    }
}

#[test]
fn hull_keeps_ends_and_drops_points_on_or_above_edges() {
    let mut hull = Vec::new();
    lower_hull(
        &[(0, 9.0), (1, 8.0), (2, 4.0), (3, 3.0), (4, 2.0), (9, 1.5)],
        &mut hull,
    );
    assert_eq!(hull, [0, 2, 4, 5]);
    lower_hull(&[(5, 1.0)], &mut hull);
    assert_eq!(hull, [0]);
}
