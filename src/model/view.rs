//! The view of a whole model.

use std::collections::BTreeMap;
use std::fmt;

use anyhow::{Context as _, Result, bail, ensure};
use serde::Serialize;

use super::name::TensorName;
use super::policy;
use super::role::Role;
use crate::gguf::{Gguf, TensorInfo, Value};
use crate::mixed;
use crate::units;

/// What is known about one tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorView {
    /// Its place in [`Gguf::tensors`].
    pub index: usize,
    /// Its name.
    pub name: String,
    /// What it does.
    pub role: Role,
    /// The layer it belongs to.
    pub layer: Option<usize>,
    /// The expert it belongs to, in old models that keep a tensor for every expert.
    pub expert: Option<usize>,
    /// The name without the numbers of layer and expert (`blk.ffn_down_exps.weight`): tensors of one class
    /// are alike.
    pub class: String,
    /// Experts whose matrices it holds, `ne(2)` of a merged expert projection; 1 for any other tensor.
    pub n_expert: usize,
    /// Whether llama.cpp lets it be quantized. Its rows must also hold whole blocks of the type.
    pub quantizable: bool,
    /// Why not, if so: completes "it is …".
    pub reason: Option<&'static str>,
    /// Elements.
    pub n_params: u64,
    /// Bytes of data.
    pub n_bytes: u64,
}

/// What the tensors of a model are.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelView {
    /// `general.architecture`, of a mixed file without the guard.
    pub arch: String,
    /// Layers, NextN layers included.
    pub n_layer: usize,
    /// Experts of a layer; 0 for a dense model.
    pub n_expert: usize,
    /// Experts that a token is sent to, the most of any layer; 0 for a dense model.
    pub n_expert_used: usize,
    /// Width of the hidden state.
    pub n_embd: usize,
    /// The tensors, in the order of [`Gguf::tensors`].
    pub tensors: Vec<TensorView>,
}

impl ModelView {
    /// Looks at a model's metadata and tensor names.
    ///
    /// # Errors
    /// The file is no language model, a key is missing or of the wrong type, or a tensor's shape contradicts
    /// the number of experts; names the key or tensor, and leaves the file's name to the caller.
    pub fn new(gguf: &Gguf) -> Result<ModelView> {
        let meta = &gguf.metadata;
        let arch = meta.get_str("general.architecture").context(
            "key general.architecture is missing: this is not a model; give a GGUF model",
        )?;
        let arch = mixed::base_architecture(arch);
        let size = |key: &str| -> Result<Option<usize>> {
            let key = format!("{arch}.{key}");
            let Some(value) = meta.get(&key) else {
                return Ok(None);
            };
            let n = largest(value).and_then(|n| usize::try_from(n).ok());
            n.map(Some)
                .with_context(|| format!("key {key} is not a size; convert the model again"))
        };
        let required = |key: &str| -> Result<usize> {
            size(key)?.with_context(|| {
                format!(
                    "key {arch}.{key} is missing: this is not a language model that llama.cpp runs"
                )
            })
        };
        let view = ModelView {
            n_layer: required("block_count")?,
            n_embd: required("embedding_length")?,
            n_expert: size("expert_count")?.unwrap_or(0),
            n_expert_used: size("expert_used_count")?.unwrap_or(0),
            tensors: gguf
                .tensors
                .iter()
                .enumerate()
                .map(|(index, info)| TensorView::new(index, info, arch))
                .collect(),
            arch: arch.to_owned(),
        };
        view.check(gguf)?;
        Ok(view)
    }

    /// Whether the model has routed experts.
    pub fn is_moe(&self) -> bool {
        self.n_expert > 0 && self.tensors.iter().any(|t| t.role.is_expert())
    }

    /// The tensor of this name.
    pub fn tensor(&self, name: &str) -> Option<&TensorView> {
        self.tensors.iter().find(|t| t.name == name)
    }

    /// Numbers for each role.
    pub fn summary(&self) -> ModelSummary {
        let mut roles: BTreeMap<Role, RoleSummary> = BTreeMap::new();
        for t in &self.tensors {
            let r = roles.entry(t.role).or_insert(RoleSummary {
                role: t.role,
                tensors: 0,
                quantizable: 0,
                params: 0,
                bytes: 0,
            });
            r.tensors += 1;
            r.quantizable += usize::from(t.quantizable);
            r.params = r.params.saturating_add(t.n_params);
            r.bytes = r.bytes.saturating_add(t.n_bytes);
        }
        let roles: Vec<RoleSummary> = roles.into_values().collect();
        ModelSummary {
            architecture: self.arch.clone(),
            layers: self.n_layer,
            experts: self.n_expert,
            experts_used: self.n_expert_used,
            embedding_length: self.n_embd,
            params: roles.iter().fold(0, |n, r| n.saturating_add(r.params)),
            bytes: roles.iter().fold(0, |n, r| n.saturating_add(r.bytes)),
            roles,
        }
    }

    fn check(&self, gguf: &Gguf) -> Result<()> {
        let key = format!("{}.expert_count", self.arch);
        let used_key = format!("{}.expert_used_count", self.arch);
        ensure!(
            self.n_expert_used <= self.n_expert,
            "key {used_key} is {} but {key} is {}; convert the model again",
            self.n_expert_used,
            self.n_expert
        );
        // By layer and projection, the numbers of the experts that have tensors of their own.
        let mut separate: BTreeMap<(usize, Role), Vec<(usize, &str)>> = BTreeMap::new();
        for t in &self.tensors {
            let info = &gguf.tensors[t.index];
            if let Some(layer) = t.layer
                && t.class.starts_with("blk.")
            {
                ensure!(
                    layer < self.n_layer,
                    "tensor {} is of layer {layer} but {}.block_count is {}; convert the model again",
                    t.name,
                    self.arch,
                    self.n_layer
                );
            }
            let experts = if t.class == "blk.ffn_gate_inp.weight" {
                info.ne(1)
            } else if t.role.is_expert() {
                ensure!(
                    self.n_expert > 0,
                    "tensor {} holds experts but {key} is 0 or missing; convert the model again",
                    t.name
                );
                ensure!(
                    self.n_expert_used > 0,
                    "tensor {} holds experts but {used_key} is 0 or missing; convert the model again",
                    t.name
                );
                ensure!(
                    info.ne(2) > 0,
                    "tensor {} of shape {} holds no experts; convert the model again",
                    t.name,
                    info.dims
                );
                if let (Some(layer), Some(expert)) = (t.layer, t.expert) {
                    separate
                        .entry((layer, t.role))
                        .or_default()
                        .push((expert, &t.name));
                    continue;
                }
                // Chunk experts (Grove-MoE) are fewer by design.
                if t.class.ends_with("_chexps.weight") {
                    continue;
                }
                info.ne(2)
            } else {
                continue;
            };
            ensure!(
                experts == self.n_expert as u64,
                "tensor {} of shape {} is for {experts} experts but {key} is {}; convert the model again",
                t.name,
                info.dims,
                self.n_expert
            );
        }
        for ((layer, role), mut experts) in separate {
            experts.sort_unstable();
            for (i, (expert, name)) in experts.iter().enumerate() {
                if *expert != i || *expert >= self.n_expert {
                    bail!(
                        "tensor {name}: the {role} projections of layer {layer} are not those of experts 0 to {}; convert the model again",
                        self.n_expert - 1
                    );
                }
            }
            let (_, last) = experts[experts.len() - 1];
            ensure!(
                experts.len() == self.n_expert,
                "tensor {last} is the last {role} projection of layer {layer}, which has {} of {} experts; convert the model again",
                experts.len(),
                self.n_expert
            );
        }
        Ok(())
    }
}

impl TensorView {
    fn new(index: usize, info: &TensorInfo, arch: &str) -> TensorView {
        let name = TensorName::parse(&info.name);
        let role = Role::of(&name);
        let reason = policy::kept_because(arch, &info.name, &info.dims, info.ty);
        let n_expert = if role.is_expert() && name.expert.is_none() {
            info.ne(2) as usize
        } else {
            1
        };
        TensorView {
            index,
            name: info.name.clone(),
            role,
            layer: name.layer,
            expert: name.expert,
            class: name.class(),
            n_expert,
            quantizable: reason.is_none(),
            reason,
            n_params: info.n_elems(),
            n_bytes: info.n_bytes(),
        }
    }
}

/// A size that may differ by layer: the largest counts.
fn largest(value: &Value) -> Option<u64> {
    match value {
        Value::Array(array) => array.to_u64s()?.into_iter().max(),
        _ => value.as_u64(),
    }
}

/// A model in numbers.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ModelSummary {
    /// `general.architecture`.
    pub architecture: String,
    /// Layers.
    pub layers: usize,
    /// Experts of a layer; 0 for a dense model.
    pub experts: usize,
    /// Experts that a token is sent to.
    pub experts_used: usize,
    /// Width of the hidden state.
    pub embedding_length: usize,
    /// Elements of all tensors.
    pub params: u64,
    /// Bytes of all tensors' data.
    pub bytes: u64,
    /// By role, only those that occur.
    pub roles: Vec<RoleSummary>,
}

/// The tensors of one role in numbers.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RoleSummary {
    /// The role.
    pub role: Role,
    /// Tensors.
    pub tensors: usize,
    /// Those of them that llama.cpp lets be quantized.
    pub quantizable: usize,
    /// Elements.
    pub params: u64,
    /// Bytes of data.
    pub bytes: u64,
}

impl fmt::Display for ModelSummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: {} layers, width {}",
            self.architecture, self.layers, self.embedding_length
        )?;
        if self.experts > 0 {
            write!(
                f,
                ", {} experts of which a token uses {}",
                self.experts, self.experts_used
            )?;
        }
        writeln!(
            f,
            "\n{:<22} {:>7} {:>16} {:>12} {:>7}",
            "role", "tensors", "parameters", "size", "share"
        )?;
        let row =
            |f: &mut fmt::Formatter<'_>, label: &str, tensors: usize, params: u64, bytes: u64| {
                let share = 100.0 * bytes as f64 / self.bytes.max(1) as f64;
                write!(
                    f,
                    "{label:<22} {tensors:>7} {params:>16} {:>12} {share:>6.2}%",
                    units::bytes(bytes)
                )
            };
        for r in &self.roles {
            row(f, r.role.label(), r.tensors, r.params, r.bytes)?;
            writeln!(f)?;
        }
        let tensors = self.roles.iter().map(|r| r.tensors).sum();
        row(f, "all", tensors, self.params, self.bytes)
    }
}
