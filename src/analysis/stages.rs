//! The stages of the analysis, and the analysis as it would be without some of them.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use super::error::ErrorTable;
use super::stats::{Analysis, Sample};

/// A stage of the analysis.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// Sparse data activation: how often and with what gate weight the data reaches each expert.
    Activation,
    /// Data-parameter mapping: channel importance by expert, errors weighted by it, measured effects on the
    /// output, the refit of the experts' scales.
    Mapping,
    /// Inter-expert correlation: errors of experts that fire together, in one layer and in those that follow, and how
    /// far they add up; the refit of the routers that keeps the combinations of experts as they were.
    Correlation,
}

impl Stage {
    /// All three, in order.
    pub const ALL: [Stage; 3] = [Stage::Activation, Stage::Mapping, Stage::Correlation];

    /// As it is written on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Stage::Activation => "activation",
            Stage::Mapping => "mapping",
            Stage::Correlation => "correlation",
        }
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Stage {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Stage::ALL
            .iter()
            .enumerate()
            .find(|(i, s)| text.eq_ignore_ascii_case(s.name()) || text == (i + 1).to_string());
        found.map(|(_, s)| *s).ok_or_else(|| {
            format!(
                "'{text}' is no stage; there are activation (1), mapping (2) and correlation (3)"
            )
        })
    }
}

/// Which stages are used.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stages {
    off: Vec<Stage>,
}

impl Stages {
    /// All but these.
    pub fn without(off: &[Stage]) -> Self {
        Self { off: off.to_vec() }
    }

    /// Whether a stage is used.
    pub fn has(&self, stage: Stage) -> bool {
        !self.off.contains(&stage)
    }

    /// Whether all are.
    pub fn all(&self) -> bool {
        self.off.is_empty()
    }

    /// The analysis without what the missing stages found. Without activation every expert is taken to get the
    /// same share of the data, and no domains are known; without mapping nothing is known of channels and effects, and
    /// errors are to be measured anew, unweighted; without correlation experts
    /// are independent, and effects add up.
    pub fn apply(&self, analysis: &Analysis) -> Analysis {
        let mut a = analysis.clone();
        if !self.has(Stage::Activation) {
            for router in a.routers.values_mut() {
                let n = router.counts.len().max(1) as f64;
                for values in [
                    &mut router.counts,
                    &mut router.gate_mass,
                    &mut router.gate_mass_sq,
                ] {
                    let mean = values.iter().sum::<f64>() / n;
                    values.fill(mean);
                }
            }
            a.domains.clear();
            for probe in &mut a.probes {
                probe.by_domain.clear();
            }
            a.domain_levels.clear();
            a.checks = Sample::default();
        }
        if !self.has(Stage::Mapping) {
            a.weights = BTreeMap::new();
            for domain in &mut a.domains {
                domain.weights = Arc::default();
            }
            a.errors = ErrorTable::default();
            a.probes.clear();
            a.joint.clear();
        }
        if !self.has(Stage::Correlation) {
            a.coactivation.clear();
            a.joint.clear();
            a.independent = true;
        }
        a
    }
}
