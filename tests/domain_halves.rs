//! Plans are measured on text that they were not made from.

mod common;

use std::collections::BTreeMap;

use common::lab_model;
use moqa::analysis::{Analysis, CollectOptions, Domain, Sample, WeightStats, collect};
use moqa::progress::Progress;
use moqa::runtime::{Model, ModelOptions};

/// Tokens that look like nothing, other ones for each seed.
fn chunk(seed: i32) -> Vec<i32> {
    (0..64).map(|i| (i * 37 + seed * 101) % 250).collect()
}

fn analysis(first_halves: [i32; 2]) -> Analysis {
    let stats = WeightStats {
        n_in: 1,
        counts: vec![1.0],
        sum_sq: vec![1.0],
        sum: Vec::new(),
    };
    let domain = |name: &str| Domain {
        name: name.into(),
        weights: BTreeMap::from([("x".to_owned(), stats.clone())]).into(),
        ..Domain::default()
    };
    Analysis {
        domains: ["a", "b", "without text"].map(domain).into(),
        checks: Sample {
            chunks: [first_halves[0], 2, first_halves[0] + 1, first_halves[1], 3]
                .map(chunk)
                .into(),
            domains: vec![0, 0, 0, 1, 1],
        },
        ..Analysis::default()
    }
}

#[test]
fn what_is_known_of_the_second_half_is_of_that_alone() {
    let model = Model::load(&lab_model(), &ModelOptions::default()).unwrap();
    let progress = Progress::quiet();
    let part = |a: &Analysis| a.of_second_half(&model, 1, &progress).unwrap();
    // Of three chunks the second one is in the second half.
    let seen = analysis([10, 20]);
    let known = part(&seen);
    let options = CollectOptions {
        n_ctx: 64,
        n_threads: 1,
    };
    let bar = progress.bar("", 1, "chunks");
    for (d, last) in [(0, 2), (1, 3)] {
        let alone = collect(&model, &[chunk(last)], &options, &bar).unwrap();
        assert!(!alone.routers.is_empty());
        assert_eq!(known.domains[d].routers, alone.routers);
        // Channels are those of all text.
        assert_eq!(known.domains[d].weights, seen.domains[d].weights);
    }
    assert_eq!(known.domains[2], seen.domains[2]);
    // What is in the first half changes nothing.
    assert_eq!(part(&analysis([30, 40])).domains, known.domains);
}
