//! An analysis in figures, as `inspect` and `analyze` show it.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::Serialize;

use crate::analysis::routing::{self, Bond, LayerLoad, Mover};
use crate::analysis::{Analysis, Distributions, MatrixDistribution, Probe};
use crate::model::Role;

/// Experts listed for each domain.
const MOVERS: usize = 3;
/// Pairs of experts listed for each layer.
const BONDS: usize = 3;
/// Characters of a line.
const WIDTH: usize = 100;
/// With more domains a matrix is too wide for a terminal.
const MATRIX_DOMAINS: usize = 16;

/// An analysis in numbers.
#[derive(Serialize)]
pub(super) struct AnalysisSummary {
    architecture: String,
    model_digest: String,
    datasets: Vec<String>,
    n_ctx: usize,
    n_chunks: usize,
    tensors: usize,
    probes: usize,
    /// What quantizing all experts at once does.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    joint: Vec<Joint>,
    layers: Vec<LayerLoad>,
    unreached: Vec<Unreached>,
    #[serde(skip_serializing_if = "Option::is_none")]
    domains: Option<Domains>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    together: Vec<LayerBonds>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    distribution: Vec<RoleDistribution>,
    /// Each tensor's, matrix by matrix.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    distributions: Distributions,
}

/// Effects on the output, as KL divergence in nats a token.
#[derive(Serialize)]
struct Joint {
    #[serde(rename = "type")]
    ty: String,
    tensors: usize,
    together: f64,
    /// The sum of what each does alone.
    sum: f64,
}

#[derive(Serialize)]
struct Unreached {
    tensor: String,
    experts: Vec<usize>,
}

/// How the text's domains differ in the experts that they use.
#[derive(Serialize)]
struct Domains {
    names: Vec<String>,
    /// Tokens of each.
    tokens: Vec<f64>,
    /// Jensen-Shannon divergence in bits, mean over layers.
    divergence: Vec<Vec<f64>>,
    /// The effect of quantized experts in each, as multiples of that in all text; empty where not measured.
    levels: Vec<f64>,
    /// The experts that each domain moves most.
    movers: Vec<Vec<Mover>>,
}

/// The pairs of experts of a layer that go together most.
#[derive(Serialize)]
struct LayerBonds {
    layer: usize,
    pairs: Vec<Bond>,
}

/// How the weights of the tensors of a role are distributed.
#[derive(Serialize)]
struct RoleDistribution {
    role: String,
    /// Matrices: experts and ordinary weights.
    matrices: usize,
    /// Of a matrix's mean over rows; the worst by its maximum.
    kurtosis: Spread,
    /// Of a matrix's mean over rows; the worst by its maximum.
    outlier: Spread,
    concentration: Spread,
}

/// A figure over the matrices of a role.
#[derive(Serialize)]
struct Spread {
    median: f64,
    worst: f64,
    worst_tensor: String,
    /// The expert; absent for an ordinary weight.
    #[serde(skip_serializing_if = "Option::is_none")]
    worst_expert: Option<usize>,
}

pub(super) fn summarise(a: &Analysis) -> AnalysisSummary {
    AnalysisSummary {
        architecture: a.origin.architecture.clone(),
        model_digest: a.origin.model_digest.clone(),
        datasets: a.origin.datasets.clone(),
        n_ctx: a.origin.n_ctx,
        n_chunks: a.origin.n_chunks,
        tensors: a.weights.len(),
        probes: a.probes.len(),
        joint: joint(a),
        layers: routing::layer_loads(a),
        unreached: a
            .unreached()
            .into_iter()
            .map(|(tensor, experts)| Unreached {
                tensor: tensor.to_owned(),
                experts,
            })
            .collect(),
        domains: domains(a),
        together: together(a),
        distribution: distribution(a),
        distributions: a.distributions.clone(),
    }
}

fn joint(a: &Analysis) -> Vec<Joint> {
    let each = a.joint.iter().map(|j| {
        let alone = |p: &&Probe| p.ty == j.ty && j.tensors.contains(&p.tensor);
        Joint {
            ty: j.ty.to_string(),
            tensors: j.tensors.len(),
            together: j.kld,
            sum: a.probes.iter().filter(alone).map(|p| p.kld).sum(),
        }
    });
    each.collect()
}

fn distribution(a: &Analysis) -> Vec<RoleDistribution> {
    let mut roles: BTreeMap<Role, Vec<Matrix<'_>>> = BTreeMap::new();
    for (tensor, matrices) in &a.distributions {
        let found = roles.entry(Role::of_name(tensor)).or_default();
        for (i, figures) in matrices.iter().enumerate() {
            found.push(Matrix {
                tensor,
                expert: (matrices.len() > 1).then_some(i),
                figures,
            });
        }
    }
    roles
        .into_iter()
        .map(|(role, matrices)| RoleDistribution {
            role: role.to_string(),
            matrices: matrices.len(),
            kurtosis: spread(&matrices, |m| m.kurtosis_mean, |m| m.kurtosis_max),
            outlier: spread(&matrices, |m| m.outlier_mean, |m| m.outlier_max),
            concentration: spread(&matrices, |m| m.concentration, |m| m.concentration),
        })
        .collect()
}

struct Matrix<'a> {
    tensor: &'a str,
    expert: Option<usize>,
    figures: &'a MatrixDistribution,
}

/// The median of one figure and the matrix with the largest of another; there is at least one matrix.
fn spread(
    matrices: &[Matrix<'_>],
    typical: fn(&MatrixDistribution) -> f64,
    extreme: fn(&MatrixDistribution) -> f64,
) -> Spread {
    let mut values: Vec<f64> = matrices.iter().map(|m| typical(m.figures)).collect();
    values.sort_by(f64::total_cmp);
    let n = values.len();
    let worst = matrices.iter().reduce(|a, b| {
        if extreme(b.figures) > extreme(a.figures) {
            b
        } else {
            a
        }
    });
    Spread {
        median: (values[(n - 1) / 2] + values[n / 2]) / 2.0,
        worst: worst.map_or(f64::NAN, |m| extreme(m.figures)),
        worst_tensor: worst.map(|m| m.tensor.to_owned()).unwrap_or_default(),
        worst_expert: worst.and_then(|m| m.expert),
    }
}

fn domains(a: &Analysis) -> Option<Domains> {
    let domains = &a.domains;
    (domains.len() > 1).then(|| Domains {
        names: domains.iter().map(|d| d.name.clone()).collect(),
        tokens: domains
            .iter()
            .map(|d| d.routers.values().map(|r| r.tokens).fold(0.0, f64::max))
            .collect(),
        divergence: routing::domain_divergence(domains),
        levels: a.domain_levels.clone(),
        movers: routing::domain_movers(domains, MOVERS),
    })
}

fn together(a: &Analysis) -> Vec<LayerBonds> {
    a.coactivation
        .iter()
        .filter_map(|(layer, c)| {
            let tokens = a.routers.get(layer)?.tokens;
            Some(LayerBonds {
                layer: *layer,
                pairs: routing::strongest_bonds(c, tokens, BONDS),
            })
        })
        .collect()
}

/// A share of 0 to 1 in percent.
fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}

/// Names after a heading, in lines of at most [`WIDTH`] characters where the names allow it.
fn wrapped(heading: &str, names: &[String]) -> String {
    let mut s = heading.to_owned();
    let mut column = heading.chars().count();
    for (i, name) in names.iter().enumerate() {
        let comma = if i + 1 < names.len() { "," } else { "" };
        let length = name.chars().count() + 2;
        if column + length > WIDTH {
            s.push_str("\n   ");
            column = 3;
        }
        let _ = write!(s, " {name}{comma}");
        column += length;
    }
    s.push('\n');
    s
}

/// A domain's name in a column of 18 characters.
fn short(name: &str) -> String {
    match name {
        "" => "(no label)".to_owned(),
        _ if name.chars().count() > 18 => name.chars().take(17).chain(['…']).collect(),
        _ => name.to_owned(),
    }
}

impl AnalysisSummary {
    pub(super) fn to_text(&self) -> String {
        let mut s = format!(
            "analysis of {} tensors on {} chunks of {} tokens; {} measured effects\n",
            self.tensors, self.n_chunks, self.n_ctx, self.probes
        );
        s += &wrapped("measured on", &self.datasets);
        let digest = if self.model_digest.is_empty() {
            "an unnamed model"
        } else {
            &self.model_digest
        };
        let _ = writeln!(s, "made for {digest}");
        for j in &self.joint {
            let _ = writeln!(
                s,
                "the {} expert tensors in {}: KL divergence {:.5} together, {:.5} as the sum of each alone",
                j.tensors, j.ty, j.together, j.sum
            );
        }
        self.write_load(&mut s);
        for u in &self.unreached {
            let _ = writeln!(
                s,
                "no token reached of {}: experts {:?}",
                u.tensor, u.experts
            );
        }
        if let Some(domains) = &self.domains {
            domains.write(&mut s);
        }
        self.write_together(&mut s);
        self.write_distribution(&mut s);
        s
    }

    fn write_load(&self, s: &mut String) {
        if self.layers.is_empty() {
            return;
        }
        s.push_str(
            "\nload of experts: entropy over its maximum, Gini coefficient; never reached, rarely (below 1/8\n\
             of the even share); the least-reached expert's tokens and their relative standard error\n\
             layer experts used   tokens entropy  Gini never rare  largest share  least tokens\n",
        );
        for l in &self.layers {
            let error = l
                .least_error
                .map_or("unknown".to_owned(), |e| format!("±{}", percent(e)));
            let _ = writeln!(
                s,
                "{:>5} {:>7} {:>4} {:>8} {:>7.3} {:>5.3} {:>5} {:>4}  {:>7} {:<6} {:>8} {error}",
                l.layer,
                l.n_expert,
                l.n_used,
                l.tokens,
                l.load_entropy,
                l.load_gini,
                l.unreached.len(),
                l.rare.len(),
                percent(l.largest_share),
                format!("(#{})", l.busiest),
                l.least,
            );
        }
        for l in self.layers.iter().filter(|l| !l.rare.is_empty()) {
            let _ = writeln!(
                s,
                "rarely reached in layer {}: experts {:?}",
                l.layer, l.rare
            );
        }
    }

    fn write_distribution(&self, s: &mut String) {
        if self.distribution.is_empty() {
            return;
        }
        s.push_str(
            "\nweights: excess kurtosis of rows (0: normal), largest magnitude over the root mean square of a\n\
             row, share of the output that the strongest 1 % of input channels have; median and worst\n\
             role                 matrices    kurtosis        outlier         channels     worst outlier\n",
        );
        for r in &self.distribution {
            let expert = r
                .outlier
                .worst_expert
                .map_or(String::new(), |e| format!(" #{e}"));
            let name = r.outlier.worst_tensor.trim_end_matches(".weight");
            let _ = writeln!(
                s,
                "{:<20} {:>8} {:>6.2} {:>7.1} {:>7.1} {:>7.1} {:>6.1} {:>5.1} %  {name}{expert}",
                r.role,
                r.matrices,
                r.kurtosis.median,
                r.kurtosis.worst,
                r.outlier.median,
                r.outlier.worst,
                r.concentration.median * 100.0,
                r.concentration.worst * 100.0,
            );
        }
    }

    fn write_together(&self, s: &mut String) {
        if self.together.iter().all(|l| l.pairs.is_empty()) {
            return;
        }
        s.push_str(
            "\nexperts sent the same tokens most above chance, with how many times as often\n",
        );
        for l in self.together.iter().filter(|l| !l.pairs.is_empty()) {
            let _ = write!(s, "layer {:>3}", l.layer);
            for p in &l.pairs {
                let pair = format!("#{} + #{}", p.experts[0], p.experts[1]);
                let _ = write!(s, "   {pair:<13} {:>6.2}", p.lift);
            }
            s.push('\n');
        }
    }
}

impl Domains {
    fn write(&self, s: &mut String) {
        let n = self.names.len();
        s.push_str(
            "\ndivergence of the domains' use of experts, thousandths of a bit (1000: none in common)\n",
        );
        let thousandths = |d: f64| format!("{:.0}", d * 1000.0);
        if n <= MATRIX_DOMAINS {
            let _ = write!(s, "{:<22}", "");
            for i in 1..=n {
                let _ = write!(s, "{i:>4} ");
            }
            s.pop();
            s.push('\n');
        }
        for (i, name) in self.names.iter().enumerate() {
            let _ = write!(s, "{:>2} {:<18} ", i + 1, short(name));
            let others = || (0..n).filter(|j| *j != i);
            let by =
                |a: &usize, b: &usize| self.divergence[i][*a].total_cmp(&self.divergence[i][*b]);
            if n <= MATRIX_DOMAINS {
                for j in 0..n {
                    let cell = if i == j {
                        "·".to_owned()
                    } else {
                        thousandths(self.divergence[i][j])
                    };
                    let _ = write!(s, "{cell:>4} ");
                }
            } else if let (Some(near), Some(far)) = (others().min_by(by), others().max_by(by)) {
                let of = |j: usize| {
                    format!(
                        "{} ({})",
                        short(&self.names[j]),
                        thousandths(self.divergence[i][j])
                    )
                };
                let _ = write!(s, "nearest {:<26} furthest {}", of(near), of(far));
            }
            while s.ends_with(' ') {
                s.pop();
            }
            s.push('\n');
        }
        if !self.levels.is_empty() {
            s.push_str(
                "\nwhat quantized experts do to the output, by domain (1: as in all text)\n",
            );
        }
        for (i, (name, level)) in self.names.iter().zip(&self.levels).enumerate() {
            let _ = writeln!(s, "{:>2} {:<18} {level:>5.2}", i + 1, short(name));
        }
        s.push_str(
            "\nexperts that a domain uses most unlike the domains' mean: layer/expert, mean share → its own\n",
        );
        for (i, name) in self.names.iter().enumerate() {
            let _ = write!(s, "{:>2} {:<18}", i + 1, short(name));
            for m in &self.movers[i] {
                let _ = write!(
                    s,
                    " {:>7} {:>4.1} → {:>4.1} % ",
                    format!("{}/{}", m.layer, m.expert),
                    m.mean * 100.0,
                    m.share * 100.0
                );
            }
            while s.ends_with(' ') {
                s.pop();
            }
            s.push('\n');
        }
    }
}
