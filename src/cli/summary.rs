//! An analysis in figures, as `inspect` and `analyze` show it.

use std::fmt::Write as _;

use serde::Serialize;

use crate::analysis::Analysis;
use crate::analysis::routing::{self, Bond, LayerLoad, Mover};

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
    layers: Vec<LayerLoad>,
    unreached: Vec<Unreached>,
    #[serde(skip_serializing_if = "Option::is_none")]
    domains: Option<Domains>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    together: Vec<LayerBonds>,
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
    /// The experts that each domain moves most.
    movers: Vec<Vec<Mover>>,
}

/// The pairs of experts of a layer that go together most.
#[derive(Serialize)]
struct LayerBonds {
    layer: usize,
    pairs: Vec<Bond>,
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
