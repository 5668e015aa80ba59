//! Which types a tensor may get.

use crate::ggml;
use crate::gguf::{GgmlType, TensorInfo};

/// Types considered unless told otherwise: every k-quant, i-quant and legacy type. Experimental and ternary
/// types (TQ, Q1_0, Q2_0, MXFP4, NVFP4) are made for models trained to them and lose on others.
pub fn default_types() -> Vec<GgmlType> {
    use GgmlType::*;
    vec![
        IQ1_S, IQ1_M, IQ2_XXS, IQ2_XS, IQ2_S, Q2_K, IQ3_XXS, IQ3_S, Q3_K, IQ4_XS, IQ4_NL, Q4_0,
        Q4_K, Q4_1, Q5_0, Q5_K, Q5_1, Q6_K, Q8_0,
    ]
}

/// The types to choose from.
#[derive(Clone, Debug)]
pub struct Candidates {
    types: Vec<GgmlType>,
}

impl Candidates {
    /// From a list, duplicates removed.
    pub fn new(mut types: Vec<GgmlType>) -> Self {
        types.sort();
        types.dedup();
        Self { types }
    }

    /// Types for a tensor: those smaller than its source type whose blocks divide its rows and, where ggml
    /// insists, for which there is importance data; and the source type itself.
    pub fn of(&self, tensor: &TensorInfo, has_importance: bool) -> Vec<GgmlType> {
        let mut types: Vec<GgmlType> = self
            .types
            .iter()
            .copied()
            .filter(|ty| {
                ggml::can_encode(*ty)
                    && ty.bpw() < tensor.ty.bpw()
                    && ty.row_bytes(tensor.ne(0)).is_some()
                    && (has_importance || !ggml::requires_importance(*ty))
            })
            .collect();
        types.push(tensor.ty);
        types
    }
}

impl Default for Candidates {
    fn default() -> Self {
        Self::new(default_types())
    }
}
