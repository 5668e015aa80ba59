//! Scenarios of data: which mix of domains a plan is made for.

use anyhow::{Context, Result, bail, ensure};

use super::cost::CostModel;
use super::recipe::Plan;
use super::solve::{Budget, Granularity, PlanInputs, expected_divergence, make_plan};
use crate::analysis::Analysis;

/// Which text the model will see.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Scenario {
    /// All domains of the calibration text alike.
    #[default]
    Balanced,
    /// Domains with these weights; what is missing to 1 is shared by those not named.
    Workload(Vec<(String, f64)>),
    /// The domain that fares worst counts.
    Robust,
}

/// Rounds of reweighting in [`Scenario::Robust`].
const ROBUST_ROUNDS: usize = 24;
/// Rounds with a type for each expert, which take many times longer: after those with a type for each tensor, from the
/// weights that were best.
const ROBUST_EXPERT_ROUNDS: usize = 4;

/// Makes the plan for a scenario.
///
/// [`Scenario::Robust`] minimises the largest expected divergence of a domain by multiplicative weights (Arora,
/// Hazan and Kale 2012): domains that fare badly weigh more in the next round; the best plan of all rounds, by
/// its worst domain, is kept.
///
/// # Errors
/// A workload names a domain that the analysis does not have, or as [`make_plan`].
pub fn plan_for(
    inputs: &PlanInputs<'_>,
    budget: Budget,
    scenario: &Scenario,
    granularity: Granularity,
) -> Result<Plan> {
    let domains = &inputs.analysis.domains;
    let even = vec![1.0; domains.len()];
    let with = |analysis: &Analysis, granularity: Granularity| {
        let inputs = PlanInputs {
            analysis,
            ..*inputs
        };
        make_plan(&inputs, budget, granularity)
    };
    match scenario {
        Scenario::Balanced => with(&inputs.analysis.for_mix(&even), granularity),
        Scenario::Workload(named) => {
            let weights = workload(inputs.analysis, named)?;
            with(&inputs.analysis.for_mix(&weights), granularity)
        }
        Scenario::Robust => {
            ensure!(
                domains.len() > 1,
                "the robust strategy needs text of several domains; analyse with --text LABEL=PATH for each"
            );
            let single: Vec<Analysis> = (0..domains.len())
                .map(|d| {
                    let mut only = vec![0.0; domains.len()];
                    only[d] = 1.0;
                    inputs.analysis.for_mix(&only)
                })
                .collect();
            let costs: Vec<CostModel> = single
                .iter()
                .map(|a| CostModel::new(inputs.view, a))
                .collect();
            // The best of some rounds from `weights` on: its worst domain, its weights and itself.
            let rounds = |mut weights: Vec<f64>, n: usize, granularity: Granularity| {
                let mut best: Option<(f64, Vec<f64>, Plan)> = None;
                for round in 0..n {
                    let plan = with(&inputs.analysis.for_mix(&weights), granularity)?;
                    let fares: Vec<f64> = single
                        .iter()
                        .zip(&costs)
                        .map(|(a, c)| expected_divergence(&plan, a, c))
                        .collect();
                    let worst = fares.iter().copied().fold(0.0, f64::max);
                    if best.as_ref().is_none_or(|b| worst < b.0) {
                        best = Some((worst, weights.clone(), plan));
                    }
                    let step = 2.0 / (1.0 + round as f64).sqrt();
                    for (w, f) in weights.iter_mut().zip(&fares) {
                        *w *= (step * (f / worst.max(f64::MIN_POSITIVE) - 1.0)).exp();
                    }
                }
                best.context("no plan was found")
            };
            let (_, weights, plan) = rounds(even, ROBUST_ROUNDS, Granularity::Tensor)?;
            if granularity == Granularity::Tensor {
                return Ok(plan);
            }
            Ok(rounds(weights, ROBUST_EXPERT_ROUNDS, granularity)?.2)
        }
    }
}

fn workload(analysis: &Analysis, named: &[(String, f64)]) -> Result<Vec<f64>> {
    let known: Vec<&str> = analysis.domains.iter().map(|d| d.name.as_str()).collect();
    let mut weights = vec![None; known.len()];
    for (name, w) in named {
        let Some(at) = known.iter().position(|k| k == name) else {
            bail!(
                "--weight {name}: the analysis has no such domain; it has {}",
                known.join(", ")
            );
        };
        weights[at] = Some(*w);
    }
    let given: f64 = weights.iter().flatten().sum();
    ensure!(
        given > 0.0,
        "the workload strategy needs --weight LABEL=SHARE for at least one domain"
    );
    let others = weights.iter().filter(|w| w.is_none()).count();
    let rest = (1.0 - given).max(0.0) / others.max(1) as f64;
    Ok(weights.into_iter().map(|w| w.unwrap_or(rest)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analysis::Domain;

    #[test]
    fn the_rest_of_a_workload_is_shared() {
        let domain = |name: &str| Domain {
            name: name.into(),
            ..Domain::default()
        };
        let analysis = Analysis {
            domains: ["a", "b", "c"].into_iter().map(domain).collect(),
            ..Analysis::default()
        };
        let of = |named: &[(&str, f64)]| {
            workload(
                &analysis,
                &named
                    .iter()
                    .map(|(n, w)| (n.to_string(), *w))
                    .collect::<Vec<_>>(),
            )
        };
        let weights = of(&[("b", 0.7)]).unwrap();
        assert!((weights[0] - 0.15).abs() < 1e-12 && weights[1] == 0.7);
        assert_eq!(of(&[("a", 3.0)]).unwrap(), [3.0, 0.0, 0.0]);
        assert!(
            of(&[("x", 1.0)])
                .unwrap_err()
                .to_string()
                .contains("a, b, c")
        );
        assert!(of(&[]).is_err());
    }
}
