//! The plan as a file: a TOML recipe that a person can read and edit.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::analysis::{Analysis, Importance, Mix, Unreached};
use crate::gguf::{GgmlType, Gguf};

/// Version of the recipe's form.
const VERSION: u32 = 1;

/// The type chosen for a tensor, and what is expected of it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TensorChoice {
    /// Tensor name.
    pub name: String,
    /// The type; where experts have types of their own, the commonest.
    #[serde(serialize_with = "as_display")]
    pub ty: GgmlType,
    /// The type of each expert; empty when they share `ty`.
    #[serde(serialize_with = "as_displays", skip_serializing_if = "Vec::is_empty")]
    pub experts: Vec<GgmlType>,
    /// Bytes in that type; 0 where they are not known, in a recipe that was read ([`Plan::fit_to_model`] fills them in).
    #[serde(serialize_with = "as_known")]
    pub bytes: u64,
    /// Relative squared error of the tensor's outputs; where experts have types of their own, of the worst. NaN in a recipe
    /// that was read.
    pub error: f64,
    /// Expected divergence of the model's output, in nats per token. NaN in a recipe that was read.
    pub cost: f64,
}

fn as_known<S: serde::Serializer>(bytes: &u64, s: S) -> std::result::Result<S::Ok, S::Error> {
    match bytes {
        0 => s.serialize_none(),
        n => s.serialize_u64(*n),
    }
}

fn as_displays<S: serde::Serializer>(
    types: &[GgmlType],
    s: S,
) -> std::result::Result<S::Ok, S::Error> {
    s.collect_seq(types.iter().map(|t| t.name()))
}

impl TensorChoice {
    /// Brings `ty` and `experts` in order: experts that all have one type are a tensor of that type.
    pub(super) fn settle(&mut self) {
        if self.experts.is_empty() {
            return;
        }
        let mut counts: BTreeMap<GgmlType, usize> = BTreeMap::new();
        for ty in &self.experts {
            *counts.entry(*ty).or_default() += 1;
        }
        if let Some((ty, _)) = counts.iter().max_by_key(|(_, n)| **n) {
            self.ty = *ty;
        }
        if counts.len() == 1 {
            self.experts.clear();
        }
    }
}

fn as_display<S: serde::Serializer>(ty: &GgmlType, s: S) -> std::result::Result<S::Ok, S::Error> {
    s.collect_str(ty)
}

/// A plan: a type for every tensor that is to be changed.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Plan {
    /// Digest of the model that it was made for; empty in a recipe written by hand.
    pub model_digest: String,
    /// Digest of the analysis behind it; empty without one.
    pub analysis_digest: String,
    /// Bytes that were allowed.
    pub budget_bytes: u64,
    /// Bytes of the file that it gives.
    pub file_bytes: u64,
    /// Bits per weight of the tensor data.
    pub bpw: f64,
    /// Expected KL divergence in nats per token: the objective. Of workload and robust plans with the weights of domains that
    /// their types were chosen by, which are not the workload's where a bound on what others lose had its say.
    pub objective: f64,
    /// No choice under the budget, with such weights, can have a smaller objective than this.
    pub bound: f64,
    /// Whether the objective is proved to be the smallest.
    pub exact: bool,
    /// The domains that it is for, and their shares: what channels matter and what is fitted to it go by them. Empty where
    /// it is for all text as it is.
    pub mix: Mix,
    /// In the order of the file.
    pub tensors: Vec<TensorChoice>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Recipe {
    version: u32,
    #[serde(default)]
    model_digest: String,
    #[serde(default)]
    analysis_digest: String,
    #[serde(default)]
    budget_bytes: u64,
    #[serde(default)]
    file_bytes: u64,
    #[serde(default)]
    bpw: f64,
    #[serde(default)]
    objective: f64,
    #[serde(default)]
    bound: f64,
    #[serde(default)]
    exact: bool,
    #[serde(default)]
    mix: Mix,
    tensors: BTreeMap<String, TypeOrTypes>,
}

/// `"q4_K"`, or a type for each expert.
#[derive(Deserialize)]
#[serde(untagged)]
enum TypeOrTypes {
    One(String),
    Each(Vec<String>),
}

impl Plan {
    /// The chosen types by tensor name.
    pub fn types(&self) -> BTreeMap<String, GgmlType> {
        self.tensors
            .iter()
            .map(|t| (t.name.clone(), t.ty))
            .collect()
    }

    /// Tensors whose experts have types of their own.
    pub fn expert_types(&self) -> BTreeMap<String, Vec<GgmlType>> {
        let mixed = self.tensors.iter().filter(|t| !t.experts.is_empty());
        mixed.map(|t| (t.name.clone(), t.experts.clone())).collect()
    }

    /// Whether another plan chooses the same types for the same domains.
    pub fn chooses_as(&self, other: &Plan) -> bool {
        self.mix == other.mix
            && self.types() == other.types()
            && self.expert_types() == other.expert_types()
    }

    /// The shares of the analysis's domains in what the plan is for; `None` where it is for all text as it is, or where the
    /// analysis knows of no domains.
    ///
    /// # Errors
    /// The analysis has other domains.
    pub fn shares(&self, analysis: &Analysis) -> Result<Option<Vec<f64>>> {
        if self.mix.is_empty() || analysis.domains.is_empty() {
            return Ok(None);
        }
        Ok(Some(analysis.shares(&self.mix)?))
    }

    /// Importance of channels in the text that the plan is for. `unreached` decides on experts without tokens.
    ///
    /// # Errors
    /// As [`Plan::shares`].
    pub fn importance(&self, analysis: &Analysis, unreached: Unreached) -> Result<Importance> {
        Ok(match self.shares(analysis)? {
            Some(shares) => Importance::of_mix(analysis, &shares, unreached),
            None => Importance::new(analysis, unreached),
        })
    }

    /// Relative distance of the objective from the bound.
    pub fn gap(&self) -> f64 {
        if self.objective > 0.0 {
            (self.objective - self.bound).max(0.0) / self.objective
        } else {
            0.0
        }
    }

    /// The recipe's text.
    pub fn to_toml(&self) -> String {
        let mut s = String::new();
        s.push_str("# moqa plan: the type of every tensor. Types may be edited; the figures are informative.\n");
        let _ = writeln!(s, "version = {VERSION}");
        let _ = writeln!(s, "model_digest = \"{}\"", self.model_digest);
        let _ = writeln!(s, "analysis_digest = \"{}\"", self.analysis_digest);
        let _ = writeln!(s, "budget_bytes = {}", self.budget_bytes);
        let _ = writeln!(s, "file_bytes = {}", self.file_bytes);
        let _ = writeln!(s, "bpw = {:?}", self.bpw);
        let _ = writeln!(
            s,
            "objective = {:?} # expected KL divergence, nats per token",
            self.objective
        );
        let _ = writeln!(
            s,
            "bound = {:?} # no choice within the budget can do better",
            self.bound
        );
        let _ = writeln!(s, "exact = {}", self.exact);
        if !self.mix.is_empty() {
            s.push_str("\n[mix] # shares of the domains that it is for\n");
            for (name, share) in &self.mix {
                let _ = writeln!(s, "{} = {share:?}", toml::Value::String(name.clone()));
            }
        }
        s.push_str("\n[tensors]\n");
        for t in &self.tensors {
            let key = toml::Value::String(t.name.clone()).to_string();
            let types = if t.experts.is_empty() {
                format!("\"{}\"", t.ty)
            } else {
                let each: Vec<String> = t.experts.iter().map(|ty| format!("\"{ty}\"")).collect();
                format!("[{}]", each.join(", "))
            };
            let _ = writeln!(
                s,
                "{key} = {types} # {}, error {:.4} %, costs {:.2e}",
                crate::units::bytes(t.bytes),
                t.error * 100.0,
                t.cost
            );
        }
        s
    }

    /// The plan as a file for llama-quantize's `--tensor-type-file`. Give llama-quantize any preset with it:
    /// every tensor that is quantized is named.
    pub fn to_tensor_type_file(&self) -> String {
        let lines = self.tensor_patterns();
        lines.map(|(p, ty)| format!("{p}={ty}\n")).collect()
    }

    /// A pattern for each tensor as llama-quantize takes it, a lower-case regular expression, and the tensor's type; where
    /// experts have types of their own, the commonest.
    pub fn tensor_patterns(&self) -> impl Iterator<Item = (String, GgmlType)> {
        let pattern = |name: &str| format!("^{}$", regex::escape(&name.to_lowercase()));
        self.tensors.iter().map(move |t| (pattern(&t.name), t.ty))
    }

    /// Reads a recipe.
    ///
    /// # Errors
    /// Not a recipe, an unknown type, or an unknown version.
    pub fn from_toml(text: &str) -> Result<Self> {
        let recipe: Recipe = toml::from_str(text).map_err(|e| {
            // In one line; the crate's own form repeats the text, which may be of any length.
            let end = e.span().map_or(0, |s| s.start);
            let before = text.as_bytes().iter().take(end);
            let line = 1 + before.filter(|b| **b == b'\n').count();
            let message: String = e.message().chars().take(500).collect();
            anyhow!("line {line}: {}", message.replace('\n', "; "))
        })?;
        ensure!(
            recipe.version == VERSION,
            "version {} of the plan's form; this program knows {VERSION}",
            recipe.version
        );
        let tensors = recipe
            .tensors
            .into_iter()
            .map(|(name, types)| {
                let parse = |ty: &String| {
                    ty.parse::<GgmlType>()
                        .with_context(|| format!("tensor {name}"))
                };
                let (ty, experts) = match &types {
                    TypeOrTypes::One(ty) => (parse(ty)?, Vec::new()),
                    TypeOrTypes::Each(each) => {
                        let each = each.iter().map(parse).collect::<Result<Vec<_>>>()?;
                        (
                            *each.first().with_context(|| {
                                format!("tensor {name}: an empty list of types")
                            })?,
                            each,
                        )
                    }
                };
                let mut choice = TensorChoice {
                    name,
                    ty,
                    experts,
                    bytes: 0,
                    error: f64::NAN,
                    cost: f64::NAN,
                };
                choice.settle();
                Ok(choice)
            })
            .collect::<Result<_>>()?;
        Ok(Self {
            model_digest: recipe.model_digest,
            analysis_digest: recipe.analysis_digest,
            budget_bytes: recipe.budget_bytes,
            file_bytes: recipe.file_bytes,
            bpw: recipe.bpw,
            objective: recipe.objective,
            bound: recipe.bound,
            exact: recipe.exact,
            mix: recipe.mix,
            tensors,
        })
    }

    /// Reads a recipe's file.
    ///
    /// # Errors
    /// As [`Plan::from_toml`], and when the file cannot be read.
    pub fn read(path: &Path) -> Result<Self> {
        let meta = std::fs::metadata(path)
            .with_context(|| format!("{}: cannot read this plan", path.display()))?;
        ensure!(
            meta.is_file() && meta.len() < 64 << 20,
            "{}: not a plan",
            path.display()
        );
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("{}: cannot read this plan", path.display()))?;
        Self::from_toml(&text)
            .with_context(|| format!("{}: not a plan that can be used", path.display()))
    }

    /// Checks the plan against a model: every tensor exists, and its rows fill the type's blocks. Fills in
    /// the bytes.
    ///
    /// # Errors
    /// Names the tensor.
    pub fn fit_to_model(&mut self, source: &Gguf) -> Result<()> {
        for choice in &mut self.tensors {
            let Some(tensor) = source.tensor(&choice.name) else {
                bail!(
                    "tensor {}: the plan names it and the model has none of that name",
                    choice.name
                );
            };
            let n_mat = tensor.ne(2) as usize;
            if !choice.experts.is_empty() && choice.experts.len() != n_mat {
                bail!(
                    "tensor {}: the plan gives {} types and it has {n_mat} experts",
                    choice.name,
                    choice.experts.len()
                );
            }
            let each = if choice.experts.is_empty() {
                vec![choice.ty; n_mat]
            } else {
                choice.experts.clone()
            };
            choice.bytes = 0;
            for ty in each {
                let Some(row) = ty.row_bytes(tensor.ne(0)) else {
                    bail!(
                        "tensor {}: rows of {} values do not fill {ty}'s blocks of {}; choose another type",
                        choice.name,
                        tensor.ne(0),
                        ty.block_elems()
                    );
                };
                ensure!(
                    ty == tensor.ty || crate::ggml::can_encode(ty),
                    "tensor {}: ggml cannot quantize to {ty}",
                    choice.name
                );
                choice.bytes += row * (tensor.n_rows() / n_mat.max(1) as u64);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recipe_survives_the_round_trip_and_editing() {
        let plan = Plan {
            model_digest: "blake3:ab".into(),
            budget_bytes: 1000,
            file_bytes: 990,
            bpw: 3.25,
            objective: 0.0125,
            bound: 0.0124,
            mix: Mix::from([("code".to_owned(), 0.7), ("pro\"se".to_owned(), 0.3)]),
            tensors: vec![
                TensorChoice {
                    name: "a.weight".into(),
                    ty: GgmlType::Q4_K,
                    experts: vec![],
                    bytes: 5,
                    error: 0.01,
                    cost: 1e-3,
                },
                TensorChoice {
                    name: "b \"odd\".weight".into(),
                    ty: GgmlType::IQ2_XXS,
                    experts: vec![GgmlType::IQ2_XXS, GgmlType::Q2_K],
                    bytes: 5,
                    error: 0.01,
                    cost: 1e-3,
                },
            ],
            ..Plan::default()
        };
        let text = plan.to_toml();
        let read = Plan::from_toml(&text).unwrap();
        assert_eq!(read.types(), plan.types());
        assert_eq!(read.expert_types(), plan.expert_types());
        assert_eq!(
            (read.budget_bytes, read.objective, read.bpw),
            (1000, 0.0125, 3.25)
        );
        let edited = text.replace("q4_K", "Q6_K");
        assert_eq!(
            Plan::from_toml(&edited).unwrap().types()["a.weight"],
            GgmlType::Q6_K
        );
        assert!(Plan::from_toml(&text.replace("q4_K", "q4_X")).is_err());
        assert!(Plan::from_toml(&text.replace("version = 1", "version = 9")).is_err());
        assert!(Plan::from_toml("nonsense").is_err());
        assert_eq!(
            plan.to_tensor_type_file().lines().next().unwrap(),
            "^a\\.weight$=q4_K"
        );
        assert!((plan.gap() - 0.008).abs() < 1e-12);
    }
}
