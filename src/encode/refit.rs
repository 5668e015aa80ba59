//! What was fitted on the quantized model, as the encoder takes it. [`crate::refit`] measures it.

use std::collections::BTreeMap;

/// Factors of experts' matrices and new routers; neither costs bytes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Refit {
    /// By tensor: the factor of each matrix (expert), to be applied after quantizing.
    pub scales: BTreeMap<String, Vec<f32>>,
    /// By router tensor: its new values, `n_expert` rows of `n_embd`.
    pub routers: BTreeMap<String, Vec<f32>>,
}

impl Refit {
    /// The factor of a matrix; 1 where none was fitted.
    pub fn scale(&self, tensor: &str, matrix: usize) -> f32 {
        self.scales
            .get(tensor)
            .and_then(|s| s.get(matrix))
            .copied()
            .unwrap_or(1.0)
    }

    /// Whether nothing was fitted.
    pub fn is_empty(&self) -> bool {
        self.scales.is_empty() && self.routers.is_empty()
    }
}
