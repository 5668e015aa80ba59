//! What the calibration data reaches and which channels matter, measured on the model.

pub mod calibration;
mod collect;
mod distribution;
mod error;
mod exchange;
pub mod imatrix;
mod importance;
mod mix;
mod novelty;
mod part;
pub mod routing;
mod sensitivity;
mod stages;
mod stats;
mod store;
mod text;

pub use collect::{CollectOptions, collect};
pub use distribution::{
    Distributions, MatrixDistribution, complete_distributions, measure_distributions,
};
pub use error::{ErrorTable, TensorErrors, measure_errors};
pub(crate) use exchange::Exchange;
pub use importance::{Importance, Unreached};
pub use mix::Mix;
pub use novelty::says_little;
pub use sensitivity::{JointProbe, Probe, Sensitivity, SensitivityOptions};
pub use stages::{Stage, Stages};
pub use stats::{Analysis, Coactivation, Domain, Origin, RouterStats, Sample, WeightStats};
pub use store::{digest, load, save};
pub use text::{Corpus, TextPath, begin_chunks, chunk_tokens};
