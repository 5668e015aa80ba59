//! Which types a tensor may get.

use std::fmt;

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

impl fmt::Display for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.pattern, self.ty)
    }
}

/// Why a tensor cannot have a type.
#[derive(Clone, Copy, PartialEq)]
enum Obstacle {
    /// ggml has no encoder for the type.
    Encoder(GgmlType),
    /// Rows of so many values do not fill the type's blocks.
    Rows(u64, GgmlType),
    /// The type needs importance data, and there are none.
    Importance(GgmlType),
}

impl Obstacle {
    fn of(ty: GgmlType, tensor: &TensorInfo, has_importance: bool) -> Option<Self> {
        if ty == tensor.ty {
            None
        } else if !ggml::can_encode(ty) {
            Some(Self::Encoder(ty))
        } else if ty.row_bytes(tensor.ne(0)).is_none() {
            Some(Self::Rows(tensor.ne(0), ty))
        } else if !has_importance && ggml::requires_importance(ty) {
            Some(Self::Importance(ty))
        } else {
            None
        }
    }
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Encoder(ty) => write!(f, "ggml cannot quantize to {ty}"),
            Self::Rows(n, ty) => write!(
                f,
                "rows of {n} values do not fill {ty}'s blocks of {}",
                ty.block_elems()
            ),
            Self::Importance(ty) => write!(f, "{ty} needs importance data"),
        }
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
        let possible = |ty: &GgmlType| Obstacle::of(*ty, tensor, has_importance).is_none();
        if let Some(pin) = self.pin_of(&tensor.name)
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

    fn pin_of(&self, tensor: &str) -> Option<&Pin> {
        self.pins.iter().find(|p| p.pattern.is_match(tensor))
    }

    /// What the user should know of pins that do nothing, or not what they say, each in a line. `choices` are the tensors
    /// that get a choice, with whether there is importance data for them; `names` those of all tensors.
    pub(super) fn pin_notes<'a>(
        &self,
        choices: &[(&TensorInfo, bool)],
        names: impl Iterator<Item = &'a str> + Clone,
    ) -> Vec<String> {
        let mut notes = Vec::new();
        for pin in &self.pins {
            let matches = |name: &str| pin.pattern.is_match(name);
            let matching: Vec<_> = choices.iter().filter(|c| matches(&c.0.name)).collect();
            let is_first = |name: &str| self.pin_of(name).is_some_and(|p| std::ptr::eq(p, pin));
            if !names.clone().any(matches) {
                notes.push(format!("--pin {pin} matches no tensor"));
            } else if matching.is_empty() {
                notes.push(format!(
                    "--pin {pin} matches no tensor that can be quantized"
                ));
            } else if !matching.iter().any(|c| is_first(&c.0.name)) {
                notes.push(format!(
                    "--pin {pin}: all that it matches is bound by others before it"
                ));
            }
            // The first tensor that something keeps from the type, and how many others.
            let mut kept: Vec<(Obstacle, &str, usize)> = Vec::new();
            for (tensor, known) in matching.into_iter().filter(|c| is_first(&c.0.name)) {
                let Some(why) = Obstacle::of(pin.ty, tensor, *known) else {
                    continue;
                };
                match kept.iter_mut().find(|k| k.0 == why) {
                    Some(k) => k.2 += 1,
                    None => kept.push((why, &tensor.name, 0)),
                }
            }
            for (why, name, others) in kept {
                let who = match others {
                    0 => format!("tensor {name} gets another type"),
                    n => format!("tensor {name} and {n} more get other types"),
                };
                notes.push(format!("--pin {pin}: {why}; {who}"));
            }
        }
        notes
    }
}

impl Default for Candidates {
    fn default() -> Self {
        Self::new(default_types(), None, None, Vec::new())
    }
}
