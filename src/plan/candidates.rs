//! Which types a tensor may get.

use regex::Regex;

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

/// A type that tensors are bound to, `REGEX=TYPE`.
#[derive(Clone, Debug)]
pub struct Pin {
    pattern: Regex,
    ty: GgmlType,
}

impl std::str::FromStr for Pin {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (pattern, ty) = text
            .rsplit_once('=')
            .ok_or_else(|| format!("'{text}' is not REGEX=TYPE, such as attn_v=q8_0"))?;
        Ok(Pin {
            pattern: Regex::new(pattern).map_err(|e| format!("'{pattern}': {e}"))?,
            ty: ty.parse::<GgmlType>().map_err(|e| e.to_string())?,
        })
    }
}

/// The types to choose from.
#[derive(Clone, Debug)]
pub struct Candidates {
    types: Vec<GgmlType>,
    /// Bits per weight that are allowed.
    range: (f64, f64),
    pins: Vec<Pin>,
}

impl Candidates {
    /// From a list, duplicates removed; no type smaller than `min` or larger than `max`, and tensors that a pin
    /// matches (the first that does) bound to its type.
    pub fn new(
        mut types: Vec<GgmlType>,
        min: Option<GgmlType>,
        max: Option<GgmlType>,
        pins: Vec<Pin>,
    ) -> Self {
        types.sort();
        types.dedup();
        let range = (
            min.map_or(0.0, GgmlType::bpw),
            max.map_or(f64::INFINITY, GgmlType::bpw),
        );
        Self { types, range, pins }
    }

    /// Types for a tensor: those smaller than its source type whose blocks divide its rows and, where ggml
    /// insists, for which there is importance data; and the source type itself. A limit that leaves nothing is
    /// not applied; nor is a pin to a type that cannot be written.
    pub fn of(&self, tensor: &TensorInfo, has_importance: bool) -> Vec<GgmlType> {
        let possible = |ty: &GgmlType| {
            *ty == tensor.ty
                || ggml::can_encode(*ty)
                    && ty.row_bytes(tensor.ne(0)).is_some()
                    && (has_importance || !ggml::requires_importance(*ty))
        };
        if let Some(pin) = self.pins.iter().find(|p| p.pattern.is_match(&tensor.name))
            && possible(&pin.ty)
        {
            return vec![pin.ty];
        }
        let smaller = |ty: &&GgmlType| ty.bpw() < tensor.ty.bpw() && possible(ty);
        let mut types: Vec<GgmlType> = self.types.iter().filter(smaller).copied().collect();
        types.push(tensor.ty);
        let allowed: Vec<GgmlType> = types
            .iter()
            .filter(|ty| (self.range.0..=self.range.1).contains(&ty.bpw()))
            .copied()
            .collect();
        if allowed.is_empty() { types } else { allowed }
    }
}

impl Default for Candidates {
    fn default() -> Self {
        Self::new(default_types(), None, None, Vec::new())
    }
}
