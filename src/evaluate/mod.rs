//! How good a model still is: perplexity, and distance from a reference model.

mod compare;
mod logits_file;
mod report;

pub use compare::{EvalOptions, Reference, evaluate};
pub use logits_file::{LogitsReader, LogitsWriter};
pub use report::{Divergence, Estimate, EvalReport};
