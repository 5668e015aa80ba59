//! Scenarios of data: which mix of domains a plan is made for.

use anyhow::{Context, Result, bail, ensure};

use super::cost::CostModel;
use super::recipe::Plan;
use super::solve::{Budget, Granularity, PlanInputs, expected_divergence, make_plan};
use crate::analysis::{Analysis, Mix, says_little};

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

impl Scenario {
    /// Checks that plans for it can be made from what is known of these domains.
    ///
    /// # Errors
    /// A workload names another domain or gives none a share, or robust plans have no domains to choose from.
    pub fn check(&self, domains: &[&str]) -> Result<()> {
        match self {
            Scenario::Balanced => {}
            Scenario::Workload(named) => drop(weights_of(domains, named)?),
            Scenario::Robust => ensure!(
                domains.len() > 1,
                "the robust strategy needs text of several domains; analyse with --text LABEL=PATH for each"
            ),
        }
        Ok(())
    }
}

/// The weight that a workload gives each domain; `None` for those that it does not name.
fn weights_of(domains: &[&str], named: &[(String, f64)]) -> Result<Vec<Option<f64>>> {
    let mut weights = vec![None; domains.len()];
    for (name, w) in named {
        let Some(at) = domains.iter().position(|d| d == name) else {
            let known: Vec<&str> = domains.iter().copied().filter(|d| !d.is_empty()).collect();
            bail!(
                "--weight {name}: the analysis has no such domain; it has {}",
                if known.is_empty() {
                    "none; analyse with --text LABEL=PATH for each".to_owned()
                } else {
                    known.join(", ")
                }
            );
        };
        weights[at] = Some(*w);
    }
    ensure!(
        weights.iter().flatten().sum::<f64>() > 0.0,
        "the workload strategy needs --weight LABEL=SHARE for at least one domain"
    );
    Ok(weights)
}

fn names_of(analysis: &Analysis) -> Vec<&str> {
    let domains = analysis.domains.iter();
    domains.map(|d| d.name.as_str()).collect()
}

/// What plans do in each domain, measured.
pub trait Fares {
    /// Mean KL divergence of each domain, in the order of [`Analysis::domains`], in nats a token.
    ///
    /// # Errors
    /// It cannot be measured.
    fn of(&mut self, plan: &Plan) -> Result<Vec<f64>>;
}

/// Plans are measured and not only judged by what is expected of them.
pub struct Measured<'m> {
    /// What they do.
    pub fares: &'m mut dyn Fares,
    /// What is known without the text on which `fares` measures them: types are chosen by it, since every text is better
    /// on what is known of itself. Asked for where it is needed, for it may take a pass over the text.
    pub known: &'m dyn Fn() -> Result<Analysis>,
}

/// Rounds of reweighting in [`Scenario::Robust`].
const ROBUST_ROUNDS: u32 = 24;
/// Rounds with a type for each expert, which take many times longer: after those with a type for each tensor, from the
/// weights that were best.
const ROBUST_EXPERT_ROUNDS: u32 = 4;
/// Rounds of reweighting in [`Scenario::Workload`].
const WORKLOAD_ROUNDS: usize = 8;
/// How a domain's multiplier in it follows what the domain loses beyond the bound: upwards by twice that and a little, so
/// that it settles on the side that is allowed, and down by half of what is left.
const MULTIPLIER_UP: f64 = 2.0;
const MULTIPLIER_LEAST: f64 = 0.01;
const MULTIPLIER_DOWN: f64 = 0.5;
/// By how much a workload's plan may be expected to fare worse than the balanced one in a domain that the workload does
/// not name, where nothing is measured. On held-out text of the shipped model's domains it is two to three times as much:
/// with 4 % expected, plans for python, prose and kernel (weight 0.7) were 3 to 6 % better there and at most 11 % worse
/// elsewhere, with 6 % expected 6 to 9 % better and up to 17 % worse.
const OTHERS_LOSE: f64 = 0.04;
/// The same, measured on text of the calibration, for what only channels and fit change. On held-out text of the shipped
/// model's domains it was no more than was measured.
const OTHERS_LOSE_TO_FIT: f64 = 0.12;
/// And for what types change. Of nine domains the one that lost most lost up to 8 % more on held-out text than any had lost
/// as measured.
const OTHERS_LOSE_TO_TYPES: f64 = 0.08;
/// Plans that are measured beside the balanced one. Of plans of which as much is expected some are several percent better
/// than others, on other text too.
const MEASURED_PLANS: usize = 3;
/// How the expected bound may change from one of them to the next.
const BOUND_STEP: (f64, f64) = (0.3, 2.0);
/// How it changes at least where too much was lost, or the next plan may be the same.
const LESS: f64 = 0.8;

/// Channels and fit go by the shares of a mix to one of these powers, whichever measures best, or to the first where nothing
/// is measured: a domain's text is short, and how far it can be relied on differs. On held-out text plans with the balanced
/// one's types were better there by 3.7, 3.2 and 1.7 % for kernel code (weight 0.7), -1.7, 5.8 and -1.9 % for perl, -1.1,
/// -5.2 and 4.2 % for sql, 6.5, -1.3 and 2.7 % for prose; of perl and sql measuring found the best.
const FIT_POWERS: [f64; 3] = [0.5, 1.0, 0.0];
/// By how much a plan with the balanced one's types, channels and fit going by the mix, may measure worse than the balanced
/// one and be taken: so little is within the noise of the measurement, and it is what was asked for.
const FIT_NOISE: f64 = 0.02;
/// How near to the worst a domain fares, as a share of it, for channels and fit to go by it `1/e` as much.
const ROBUST_WIDTH: f64 = 0.05;

/// Makes the plan for a scenario.
///
/// [`Scenario::Workload`] minimises the expected divergence of the mix while no domain that is not named is expected to
/// lose more than [`OTHERS_LOSE`]: such a domain weighs more in the next round, by a multiplier that grows with what it
/// loses beyond that (projected subgradient steps on the Lagrangian); the best plan of all rounds that keeps to it, or the
/// balanced one, is taken.
///
/// [`Scenario::Robust`] minimises the largest expected divergence of a domain by multiplicative weights (Arora,
/// Hazan and Kale 2012): domains that fare badly weigh more in the next round; the best plan of all rounds, by
/// its worst domain, is kept.
///
/// With `measured`, a few plans are made so and measured, each with what the one before has taught: how much more is lost
/// than was expected, and by how much each domain fares worse than was expected. The best of them as measured is taken,
/// the balanced one among them.
///
/// Channels and what is fitted go by the workload's mix, as sharply as measures best ([`Plan::mix`], [`FIT_POWERS`]); in
/// the measured robust plan by the domains that fare worst. The balanced plan's types with such a mix are among the plans that are measured.
/// A workload's types that are measured were not chosen by where the text goes that they are measured on, nor were scales
/// and routers fitted to it; what is known of channels and of effects by domain is of all text, and so are the types of
/// robust plans. The bound that serves best is then used again with all that is known, and the plan that is taken is fitted
/// to all of the text.
///
/// Where the text of most of what a workload names mostly repeats itself, the plan keeps the balanced one's types, and channels
/// and fit go by the mix no more sharply than its square root. On the shipped model that was chosen for sql: its calibration
/// text is an index of links, by whose other half sharper plans are 13 % better, and on manuals of databases they were up to 9 %
/// worse, while others lost 10 %.
///
/// With a type for each expert, a workload's plan and the robust one that is not measured move bits between the experts of
/// a tensor of the balanced plan, and none between tensors, whose effects in one domain were measured on little text: of
/// plans that move them too some are several percent better, and others, of which as much was expected, ten percent worse,
/// and other domains lose more. The measured robust plan moves them, or the domain that fares worst gains nothing.
///
/// # Errors
/// A workload names a domain that the analysis does not have, as [`make_plan`], or nothing can be measured.
pub fn plan_for(
    inputs: &PlanInputs<'_>,
    budget: Budget,
    scenario: &Scenario,
    granularity: Granularity,
    measured: Option<Measured<'_>>,
) -> Result<Plan> {
    scenario.check(&names_of(inputs.analysis))?;
    let maker = Maker {
        inputs,
        budget,
        granularity,
    };
    match scenario {
        Scenario::Balanced => maker.balanced(),
        Scenario::Workload(named) => {
            maker.workload(&Workload::new(inputs.analysis, named)?, measured)
        }
        Scenario::Robust => maker.robust(measured.map(|m| m.fares)),
    }
}

fn worst(fares: &[f64]) -> f64 {
    fares.iter().copied().fold(0.0, f64::max)
}

/// Makes plans of one size.
struct Maker<'a, 'b> {
    inputs: &'a PlanInputs<'b>,
    budget: Budget,
    granularity: Granularity,
}

impl Maker<'_, '_> {
    fn n_domains(&self) -> usize {
        self.inputs.analysis.domains.len()
    }

    /// For a mix of domains, no tensor larger than in the plan `within`.
    fn plan(
        &self,
        within: Option<&Plan>,
        weights: &[f64],
        granularity: Granularity,
    ) -> Result<Plan> {
        let inputs = PlanInputs {
            analysis: &self.inputs.analysis.for_mix(weights),
            within,
            ..*self.inputs
        };
        make_plan(&inputs, self.budget, granularity)
    }

    /// What channels and fit go by for a mix of the domains, its shares to a power.
    fn fitted_to(&self, mix: &[f64], power: f64) -> Mix {
        let shares: Vec<f64> = mix.iter().map(|s| s.powf(power)).collect();
        let total: f64 = shares.iter().sum();
        let domains = self.inputs.analysis.domains.iter();
        let named = domains.zip(shares).filter(|(_, s)| *s > 0.0);
        named.map(|(d, s)| (d.name.clone(), s / total)).collect()
    }

    fn balanced(&self) -> Result<Plan> {
        self.plan(None, &vec![1.0; self.n_domains()], self.granularity)
    }

    /// The plan of the smallest expected divergence of a workload, of all rounds of reweighting in which no other domain is
    /// expected to lose more than `bound` against the balanced plan, if one is expected to be better than that.
    fn within(
        &self,
        workload: &Workload,
        expected: &Domains,
        balanced: &Plan,
        bound: f64,
    ) -> Result<Option<Plan>> {
        let sizes = (self.granularity == Granularity::Expert).then_some(balanced);
        let usual = expected.fares(balanced);
        let mut best: Option<(f64, Plan)> = None;
        let mut multipliers = vec![0.0; workload.mix.len()];
        for _ in 0..WORKLOAD_ROUNDS {
            let weights = workload.mix.iter().zip(&multipliers).map(|(a, b)| a + b);
            let plan = self.plan(sizes, &weights.collect::<Vec<f64>>(), self.granularity)?;
            let fares = expected.fares(&plan);
            let least = best.as_ref().map_or(workload.of(&usual), |b| b.0);
            if workload.most_lost(&fares, &usual) <= bound && workload.of(&fares) < least {
                best = Some((workload.of(&fares), plan));
            }
            let before = multipliers.clone();
            for &d in &workload.others {
                multipliers[d] = moved(multipliers[d], fares[d] / usual[d] - 1.0 - bound);
            }
            if multipliers == before {
                break;
            }
        }
        Ok(best.map(|b| b.1))
    }

    fn workload(&self, workload: &Workload, measured: Option<Measured<'_>>) -> Result<Plan> {
        let powers = FIT_POWERS
            .into_iter()
            .filter(|power| !workload.says_little || *power <= FIT_POWERS[0]);
        let mixes: Vec<Mix> = powers.map(|p| self.fitted_to(&workload.mix, p)).collect();
        let balanced = self.balanced()?;
        let Some(Measured { fares, known }) = measured else {
            let plan = if workload.says_little {
                None
            } else {
                let expected = Domains::new(self.inputs);
                self.within(workload, &expected, &balanced, OTHERS_LOSE)?
            };
            return Ok(with_mix(plan.unwrap_or(balanced), &mixes[0]));
        };
        let usual = fares.of(&balanced)?;
        let mut measure = |plan: &Plan| {
            let found = fares.of(plan)?;
            anyhow::Ok((workload.of(&found), workload.most_lost(&found, &usual)))
        };
        let mut best = (workload.of(&usual), balanced.clone());
        let mut fitted_to = mixes[0].clone();
        // The same types, with what the mix says of channels and what is fitted to it.
        let mut least = best.0 * (1.0 + FIT_NOISE);
        let mut before: Vec<f64> = Vec::new();
        for mix in mixes {
            // Where more sharply is better, less sharply need not be tried.
            if before.len() == 2 && before[1] < before[0] {
                break;
            }
            let plan = with_mix(balanced.clone(), &mix);
            let (of_mix, lost) = measure(&plan)?;
            before.push(of_mix);
            if lost <= OTHERS_LOSE_TO_FIT && of_mix < least {
                least = of_mix;
                best = (least, plan);
                fitted_to = mix;
            }
        }
        if workload.says_little {
            return Ok(best.1);
        }
        // Types from what is known without the text that they are measured on.
        let inputs = PlanInputs {
            analysis: &known()?,
            ..*self.inputs
        };
        let unseen = Maker {
            inputs: &inputs,
            ..*self
        };
        let expected = Domains::new(&inputs);
        let mut taken = None;
        let mut bound = OTHERS_LOSE;
        let mut last = balanced.clone();
        for _ in 0..MEASURED_PLANS {
            let plan = unseen.within(workload, &expected, &balanced, bound)?;
            let Some(plan) = plan.filter(|plan| !plan.chooses_as(&last)) else {
                bound *= BOUND_STEP.1;
                continue;
            };
            last = plan.clone();
            let plan = with_mix(plan, &fitted_to);
            let (of_mix, lost) = measure(&plan)?;
            if lost <= OTHERS_LOSE_TO_TYPES && of_mix < best.0 {
                best = (of_mix, plan);
                taken = Some(bound);
            }
            let step = OTHERS_LOSE_TO_TYPES / lost;
            let most = if step < 1.0 { LESS } else { BOUND_STEP.1 };
            bound *= step.clamp(BOUND_STEP.0, most);
        }
        // The same from all that is known.
        let again = match taken {
            Some(bound) => self.within(workload, &Domains::new(self.inputs), &balanced, bound)?,
            None => None,
        };
        Ok(again.map_or(best.1, |plan| with_mix(plan, &fitted_to)))
    }

    fn robust(&self, measured: Option<&mut dyn Fares>) -> Result<Plan> {
        let expected = Domains::new(self.inputs);
        // The best of some rounds from `weights` on, its weights and itself, if domains fare by these factors worse than
        // is expected.
        let rounds =
            |sizes: Option<&Plan>, mut weights: Vec<f64>, n, granularity, factors: &[f64]| {
                let mut best: Option<(f64, Vec<f64>, Plan)> = None;
                for round in 0..n {
                    let plan = self.plan(sizes, &weights, granularity)?;
                    let mut fares = expected.fares(&plan);
                    fares.iter_mut().zip(factors).for_each(|(f, x)| *f *= x);
                    let worst = worst(&fares);
                    if best.as_ref().is_none_or(|b| worst < b.0) {
                        best = Some((worst, weights.clone(), plan));
                    }
                    let step = 2.0 / (1.0 + f64::from(round)).sqrt();
                    for (w, f) in weights.iter_mut().zip(&fares) {
                        *w *= (step * (f / worst.max(f64::MIN_POSITIVE) - 1.0)).exp();
                    }
                }
                let (_, weights, plan) = best.context("no plan was found")?;
                anyhow::Ok((weights, plan))
            };
        let even = vec![1.0; self.n_domains()];
        let best_with = |sizes: Option<&Plan>, factors: &[f64]| {
            let tensor = Granularity::Tensor;
            let (weights, plan) = rounds(None, even.clone(), ROBUST_ROUNDS, tensor, factors)?;
            if self.granularity == tensor {
                return Ok(plan);
            }
            let expert = rounds(
                sizes,
                weights,
                ROBUST_EXPERT_ROUNDS,
                self.granularity,
                factors,
            )?;
            anyhow::Ok(expert.1)
        };
        let Some(measured) = measured else {
            let sizes = match self.granularity {
                Granularity::Expert => Some(self.balanced()?),
                Granularity::Tensor => None,
            };
            return best_with(sizes.as_ref(), &even);
        };
        let balanced = self.balanced()?;
        let mut fares = measured.of(&balanced)?;
        let mut best = (worst(&fares), balanced.clone());
        // The balanced plan's types, with channels and fit mostly for the domains that fare worst.
        let least = best.0;
        let near = |f: &f64| ((f / least - 1.0) / ROBUST_WIDTH).exp();
        let mix = self.fitted_to(&fares.iter().map(near).collect::<Vec<f64>>(), FIT_POWERS[0]);
        let mut last = with_mix(balanced, &mix);
        let of_fitted = measured.of(&last)?;
        if worst(&of_fitted) < best.0 {
            best = (worst(&of_fitted), last.clone());
        }
        for round in 0..MEASURED_PLANS {
            let plan = if round == 0 {
                // For the domain that fares worst, alone.
                let alone = fares.iter().map(|f| f64::from(*f >= least));
                self.plan(None, &alone.collect::<Vec<f64>>(), self.granularity)?
            } else {
                let usual = expected.fares(&last);
                let factor = |(f, e): (&f64, f64)| if e > 0.0 { f / e } else { 1.0 };
                let factors: Vec<f64> = fares.iter().zip(usual).map(factor).collect();
                best_with(None, &factors)?
            };
            let plan = with_mix(plan, &mix);
            if plan.chooses_as(&last) {
                break;
            }
            fares = measured.of(&plan)?;
            if worst(&fares) < best.0 {
                best = (worst(&fares), plan.clone());
            }
            last = plan;
        }
        Ok(best.1)
    }
}

/// The plan, with channels and fit going by a mix.
fn with_mix(plan: Plan, mix: &Mix) -> Plan {
    Plan {
        mix: mix.clone(),
        ..plan
    }
}

/// A domain's multiplier after a round in which it lost `excess` more than it may.
fn moved(multiplier: f64, excess: f64) -> f64 {
    if excess > 0.0 {
        multiplier + MULTIPLIER_UP * excess + MULTIPLIER_LEAST
    } else {
        f64::max(multiplier + MULTIPLIER_DOWN * excess, 0.0)
    }
}

/// What the text of each domain says of a plan.
struct Domains(Vec<(Analysis, CostModel)>);

impl Domains {
    fn new(inputs: &PlanInputs<'_>) -> Self {
        let each = (0..inputs.analysis.domains.len()).map(|d| {
            let analysis = inputs.analysis.for_domain(d);
            let costs = CostModel::new(inputs.view, &analysis);
            (analysis, costs)
        });
        Self(each.collect())
    }

    /// Expected divergence in each.
    fn fares(&self, plan: &Plan) -> Vec<f64> {
        let each = self.0.iter();
        each.map(|(analysis, costs)| expected_divergence(plan, analysis, costs))
            .collect()
    }
}

/// What a workload asks for.
struct Workload {
    /// The share of each domain.
    mix: Vec<f64>,
    /// Domains that it does not name.
    others: Vec<usize>,
    /// Whether the text of most of what it names mostly repeats itself.
    says_little: bool,
}

impl Workload {
    fn new(analysis: &Analysis, named: &[(String, f64)]) -> Result<Self> {
        let weights = weights_of(&names_of(analysis), named)?;
        let given: f64 = weights.iter().flatten().sum();
        let others: Vec<usize> = (0..weights.len())
            .filter(|d| weights[*d].is_none())
            .collect();
        let rest = (1.0 - given).max(0.0) / others.len().max(1) as f64;
        let total = given + rest * others.len() as f64;
        let mix = weights.iter().map(|w| w.unwrap_or(rest) / total).collect();
        let new = analysis.new_shares().into_iter().zip(&weights);
        let repeated = new.filter(|(new, _)| says_little(*new));
        let repeated: f64 = repeated.filter_map(|(_, w)| *w).sum();
        Ok(Self {
            mix,
            others,
            says_little: repeated > given / 2.0,
        })
    }

    /// How the mix fares where its domains fare so.
    fn of(&self, fares: &[f64]) -> f64 {
        fares.iter().zip(&self.mix).map(|(f, w)| f * w).sum()
    }

    /// The most that a domain loses which is not named, as a share of what is usual.
    fn most_lost(&self, fares: &[f64], usual: &[f64]) -> f64 {
        let lost = self.others.iter().map(|d| fares[*d] / usual[*d] - 1.0);
        lost.fold(0.0, f64::max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analysis::Domain;

    #[test]
    fn multipliers_grow_while_a_domain_loses_too_much() {
        let mut multiplier = 0.0;
        for _ in 0..3 {
            let next = moved(multiplier, 0.05);
            assert!(next > multiplier + 0.1);
            multiplier = next;
        }
        // Slower down than up, and never below nothing.
        let next = moved(multiplier, -0.05);
        assert!(next < multiplier && multiplier - next < 0.1);
        assert_eq!(moved(0.01, -1.0), 0.0);
    }

    #[test]
    fn scenarios_need_domains() {
        let workload = |name: &str| Scenario::Workload(vec![(name.to_owned(), 0.7)]);
        assert!(Scenario::Balanced.check(&[]).is_ok());
        assert!(workload("a").check(&["a", "b"]).is_ok());
        assert!(Scenario::Robust.check(&["a", "b"]).is_ok());
        let refused = |scenario: &Scenario, domains: &[&str]| {
            let error = scenario.check(domains).unwrap_err();
            error.to_string()
        };
        assert!(refused(&workload("c"), &["a", "b"]).contains("it has a, b"));
        for none in [&[][..], &[""]] {
            assert!(refused(&workload("c"), none).contains("it has none"));
        }
        assert!(refused(&Scenario::Robust, &["a"]).contains("several domains"));
    }

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
            let named: Vec<_> = named.iter().map(|(n, w)| (n.to_string(), *w)).collect();
            Workload::new(&analysis, &named)
        };
        let half = of(&[("b", 0.7)]).unwrap();
        assert!((half.mix[0] - 0.15).abs() < 1e-12 && (half.mix[1] - 0.7).abs() < 1e-12);
        assert_eq!(half.others, [0, 2]);
        assert_eq!(of(&[("a", 3.0)]).unwrap().mix, [1.0, 0.0, 0.0]);
        assert!(
            of(&[("x", 1.0)])
                .err()
                .unwrap()
                .to_string()
                .contains("a, b, c")
        );
        assert!(of(&[]).is_err());
        let fares = half.of(&[1.0, 2.0, 3.0]);
        assert!((fares - 2.0).abs() < 1e-12);
        assert_eq!(half.most_lost(&[1.0, 9.0, 3.0], &[1.0, 1.0, 2.0]), 0.5);
    }
}
