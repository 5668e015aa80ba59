//! What the conversion of all families shares.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use safetensors::Dtype;

use super::card::{self, ParameterCount};
use super::families::Family;
use super::made::{Made, MadeRows, Recipe};
use super::names::{HfName, LAYER, TOP};
use super::stored::Stored;
use super::tensor::Lazy;
use super::{Config, Converted, Folder, Options, OutType, check, vocab};
use crate::gguf::{
    Array, GgmlType, Gguf, MAX_DIMS, MadeTensor, Metadata, Shape, TensorSpec, Value,
};

/// `general.file_type` of files whose large tensors are of a type, llama.cpp's `llama_ftype`.
const FILE_TYPES: &[(GgmlType, u32)] = &[
    (GgmlType::F32, 0),
    (GgmlType::F16, 1),
    (GgmlType::Q8_0, 7),
    (GgmlType::BF16, 32),
    (GgmlType::MXFP4, 38),
];

/// GGUF modules that llama.cpp wants in float32 though they are matrices.
const ALWAYS_F32: &[&str] = &[
    "ffn_gate_inp",
    "ffn_gate_inp_shexp",
    "ssm_conv1d",
    "shortconv.conv",
];

/// A model being converted: families add tensors and keys to it.
#[derive(Debug)]
pub struct Conversion {
    /// The model's parameters; families may correct them.
    pub config: Config,
    family: &'static Family,
    out_type: GgmlType,
    metadata: Metadata,
    tensors: Vec<MadeTensor>,
    made: Vec<Made>,
    /// Tensors of single experts that wait for the rest of their layer, by expert and projection.
    experts: BTreeMap<u32, BTreeMap<(u32, String), Lazy>>,
    /// Tensors that wait for another one they belong to.
    kept: BTreeMap<String, Lazy>,
    /// Layers in the file, those that predict further tokens included.
    n_layer: u32,
}

/// Converts a folder.
pub(super) fn convert(
    family: &'static Family,
    mut config: Config,
    mut folder: Folder,
    options: &Options,
) -> Result<Converted> {
    (family.prepare)(&mut config)?;
    folder.resolve_quantization(&config)?;
    let out_type = match options.out_type {
        OutType::Fixed(ty) => ty,
        OutType::Auto => stored_type(&folder.tensors),
    };
    let mut c = Conversion {
        n_layer: config.n_layer()?,
        config,
        family,
        out_type,
        metadata: Metadata::new(),
        tensors: Vec::new(),
        made: Vec::new(),
        experts: BTreeMap::new(),
        kept: BTreeMap::new(),
    };
    (family.extra)(&mut c, &folder)?;
    for stored in &folder.tensors {
        let Some(name) = canonical(&stored.name) else {
            continue;
        };
        (family.tensor)(&mut c, &name, Lazy::stored(stored.clone()))
            .with_context(|| format!("{}: tensor {}", stored.shard.name, stored.name))?;
    }
    c.check_experts(&folder)?;
    if let Some((name, tensor)) = c.kept.first_key_value() {
        bail!(
            "{}: {name} lacks the tensor that belongs to it; download the checkpoint again",
            tensor.describe()
        );
    }
    check::shapes(&c.config, family.arch, &c.tensors, &folder, c.n_layer)?;

    let mut notes = Vec::new();
    c.metadata.set("general.architecture", family.arch);
    c.metadata.set("general.type", "model");
    card::describe(
        &folder.dir,
        &c.config.json(),
        c.count(),
        &mut c.metadata,
        &mut notes,
    )?;
    (family.parameters)(&mut c)?;
    c.metadata.set("general.quantization_version", 2u32);
    let vocabulary = vocab::metadata(&folder.dir, &c.config.json(), &options.vocab)?;
    for (key, value) in vocabulary {
        c.metadata.set(key, value);
    }
    let gguf = Gguf::from_rows(
        c.metadata,
        c.tensors,
        folder.files,
        Box::new(MadeRows(c.made)),
    )?;
    Ok(Converted { gguf, notes })
}

/// The type that most of a checkpoint is stored in, judged as llama.cpp's converter does: by its first matrix
/// in half precision.
fn stored_type(tensors: &[Arc<Stored>]) -> GgmlType {
    let mut matrices = tensors.iter().filter(|t| t.shape.len() >= 2);
    let found = matrices.find_map(|t| match t.dtype {
        Dtype::BF16 => Some(GgmlType::BF16),
        Dtype::F16 => Some(GgmlType::F16),
        _ => None,
    });
    found.unwrap_or(GgmlType::F16)
}

/// The name under which families know a tensor; `None` for what no text model needs: vision and audio
/// parts, and buffers that are computed.
fn canonical(name: &str) -> Option<String> {
    const OTHER_PARTS: &[&str] = &[
        "visual.",
        "vision.",
        "vision_",
        "audio.",
        "audio_",
        "projector.",
        "image_newline",
        "patch_embed",
    ];
    const BUFFERS: &[&str] = &[
        ".attention.masked_bias",
        ".attention.bias",
        ".rotary_emb.inv_freq",
    ];
    if OTHER_PARTS.iter().any(|p| name.contains(p)) || BUFFERS.iter().any(|s| name.ends_with(s)) {
        return None;
    }
    Some(
        name.replace("e_score_correction_bias", "e_score_correction.bias")
            .replace("language_model.", ""),
    )
}

impl Conversion {
    /// Layers in the file.
    pub fn n_layer(&self) -> u32 {
        self.n_layer
    }

    /// Adds layers that predict further tokens and follow the others in the file.
    pub fn add_layers(&mut self, n: u32) {
        self.n_layer = self.n_layer.saturating_add(n);
    }

    /// States how many layers predict further tokens, if there are any.
    ///
    /// # Errors
    /// The number of layers is not stated.
    pub fn set_mtp_layers(&mut self) -> Result<()> {
        let extra = self.n_layer.saturating_sub(self.config.n_layer()?);
        if extra > 0 {
            self.set("nextn_predict_layers", extra);
        }
        Ok(())
    }

    /// The value of `general.file_type`.
    pub(super) fn file_type(&self) -> u32 {
        // A checkpoint with MXFP4 experts is named by these, as long as no narrower type was asked for.
        let mxfp4 = self.made.iter().any(|m| m.ty == GgmlType::MXFP4);
        let ty = match self.out_type {
            GgmlType::F32 | GgmlType::F16 | GgmlType::BF16 if mxfp4 => GgmlType::MXFP4,
            ty => ty,
        };
        FILE_TYPES
            .iter()
            .find(|(t, _)| *t == ty)
            .map_or(0, |(_, n)| *n)
    }

    /// Sets a key of the model's architecture: `expert_count` becomes `mixtral.expert_count`, say.
    pub fn set(&mut self, key: &str, value: impl Into<Value>) {
        let key = format!("{}.{key}", self.family.arch);
        self.metadata.set(key, value);
    }

    /// Whether a key of the model's architecture is set.
    pub fn is_set(&self, key: &str) -> bool {
        self.metadata
            .contains(&format!("{}.{key}", self.family.arch))
    }

    /// Sets a key as it is.
    pub fn set_general(&mut self, key: &str, value: impl Into<Value>) {
        self.metadata.set(key, value);
    }

    /// Sets a key from a field that states a size, if it is there.
    ///
    /// # Errors
    /// The field is no size.
    pub fn set_u32(&mut self, key: &str, field: &str) -> Result<()> {
        if let Some(value) = self.config.opt_u32(field)? {
            self.set(key, value);
        }
        Ok(())
    }

    /// Sets a key from a field that states a number, if it is there.
    ///
    /// # Errors
    /// The field is no number.
    pub fn set_f32(&mut self, key: &str, field: &str) -> Result<()> {
        if let Some(value) = self.config.opt_f32(field)? {
            self.set(key, value);
        }
        Ok(())
    }

    /// Sets a key from a field that is true or false, if it is there.
    ///
    /// # Errors
    /// The field is neither.
    pub fn set_flag(&mut self, key: &str, field: &str) -> Result<()> {
        if self.config.get(field).is_some() {
            let value = self.config.flag(field)?;
            self.set(key, value);
        }
        Ok(())
    }

    /// Sets a key to an array of flags.
    pub fn set_flags(&mut self, key: &str, flags: Vec<bool>) {
        self.set(key, Value::Array(Array::Bool(flags)));
    }

    /// Adds a tensor under the GGUF name that belongs to its own; experts that come one by one are stacked
    /// when their layer is complete.
    ///
    /// # Errors
    /// The name is not one of this family's.
    pub fn add(&mut self, name: &str, tensor: Lazy) -> Result<()> {
        let parsed = HfName::parse(name);
        if let Some((expert, projection)) = parsed.expert() {
            return self.add_expert(&parsed, expert, projection, tensor);
        }
        let name = self.gguf_name(&parsed)?;
        self.add_named(&name, tensor)
    }

    /// The GGUF name of a tensor.
    ///
    /// # Errors
    /// The family has none.
    fn gguf_name(&self, name: &HfName<'_>) -> Result<String> {
        // A layer may have an embedding of its own; outside of layers the common names stand.
        let found = match name.layer {
            Some(_) => self.family.names.iter().chain(LAYER),
            None => TOP.iter().chain(self.family.names),
        }
        .find(|(module, _)| *module == name.module)
        .map(|(_, gguf)| *gguf);
        let Some(gguf) = found else {
            bail!(
                "is not known in a {} model; the checkpoint is damaged or of a newer kind",
                self.family.arch
            );
        };
        let suffix = if name.suffix.is_empty() {
            String::new()
        } else {
            format!(".{}", name.suffix)
        };
        match name.layer {
            Some(layer) => {
                ensure!(
                    layer < self.n_layer,
                    "is of layer {layer}, but {}",
                    self.config.error(
                        "num_hidden_layers",
                        format!("says that there are {}", self.n_layer)
                    )
                );
                Ok(format!("blk.{layer}.{gguf}{suffix}"))
            }
            None => Ok(format!("{gguf}{suffix}")),
        }
    }

    fn add_expert(
        &mut self,
        name: &HfName<'_>,
        expert: u32,
        projection: &str,
        tensor: Lazy,
    ) -> Result<()> {
        let n_expert = self.config.n_expert()?;
        ensure!(
            expert < n_expert,
            "is of expert {expert}, but {}",
            self.config
                .error("num_experts", format!("says that there are {n_expert}"))
        );
        let order = self.family.expert_order;
        ensure!(
            order.iter().any(|(p, _)| *p == projection) && name.suffix == "weight",
            "is not known among the experts' projections"
        );
        let layer = name.layer.context("is an expert's but of no layer")?;
        let waiting = self.experts.entry(layer).or_default();
        waiting.insert((expert, projection.to_owned()), tensor);
        if waiting.len() < n_expert as usize * order.len() {
            return Ok(());
        }
        let mut all = self.experts.remove(&layer).unwrap_or_default();
        for (projection, gguf) in order {
            let parts = (0..n_expert)
                .filter_map(|e| all.remove(&(e, (*projection).to_owned())))
                .collect();
            let stacked = Lazy::stack(parts)?;
            self.add_named(&format!("blk.{layer}.{gguf}.weight"), stacked)?;
        }
        Ok(())
    }

    /// Keeps a tensor until another one asks for it with [`Conversion::take`].
    pub fn keep(&mut self, name: &str, tensor: Lazy) {
        self.kept.insert(name.to_owned(), tensor);
    }

    /// A tensor that was kept.
    pub fn take(&mut self, name: &str) -> Option<Lazy> {
        self.kept.remove(name)
    }

    fn check_experts(&self, folder: &Folder) -> Result<()> {
        let Some((layer, found)) = self.experts.first_key_value() else {
            return Ok(());
        };
        let n_expert = self.config.n_expert()?;
        for expert in 0..n_expert {
            for (projection, _) in self.family.expert_order {
                ensure!(
                    found.contains_key(&(expert, (*projection).to_owned())),
                    "{}: layer {layer}: the {projection} weight of expert {expert} is missing; {} says that there are {n_expert} experts; download the checkpoint again",
                    folder.dir.display(),
                    self.config.path().display()
                );
            }
        }
        Ok(())
    }

    /// The tensor of a layer under a GGUF name: `ffn_up_exps.weight`, say.
    ///
    /// # Errors
    /// As [`Conversion::add_named`], or the name is of no layer.
    pub fn add_to_layer(&mut self, name: &str, gguf: &str, tensor: Lazy) -> Result<()> {
        let layer = HfName::parse(name).layer.context("is of no layer")?;
        self.add_named(&format!("blk.{layer}.{gguf}"), tensor)
    }

    /// Adds a tensor under its name in the GGUF file.
    ///
    /// # Errors
    /// It cannot be stored.
    pub fn add_named(&mut self, name: &str, tensor: Lazy) -> Result<()> {
        if let Some(stored) = tensor.origin() {
            ensure!(
                stored.is_float(),
                "data of type {} cannot be converted; use a checkpoint in BF16, F16, F32, FP8 (E4M3) or MXFP4",
                stored.dtype
            );
        }
        let shape = tensor.shape();
        let ty = self.type_of(name, &shape);
        self.push(name, &shape, ty, Recipe::Values(tensor))
    }

    /// Adds an MXFP4 tensor: `codes` of shape `[.., rows, blocks, 16]`, `scales` of `[.., rows, blocks]`.
    ///
    /// # Errors
    /// The shapes do not fit.
    pub fn add_mxfp4(&mut self, name: &str, codes: Lazy, scales: Lazy) -> Result<()> {
        let (mut shape, blocks) = (scales.shape(), codes.shape());
        ensure!(
            blocks.len() == shape.len() + 1
                && blocks.starts_with(&shape)
                && blocks.ends_with(&[16]),
            "MXFP4 blocks of shape {blocks:?} with scales of {shape:?}"
        );
        if let Some(n) = shape.last_mut() {
            *n = n.saturating_mul(32);
        }
        self.push(
            name,
            &shape,
            GgmlType::MXFP4,
            Recipe::Mxfp4 { codes, scales },
        )
    }

    fn push(&mut self, name: &str, shape: &[u64], ty: GgmlType, recipe: Recipe) -> Result<()> {
        let mut dims = shape.to_vec();
        dims.reverse();
        let dims = Shape::new(&dims)
            .filter(|d| !d.is_empty())
            .with_context(|| format!("shape {shape:?} is not of 1 to {MAX_DIMS} dimensions"))?;
        ensure!(
            dims.iter().all(|d| *d > 0),
            "shape {shape:?} holds no elements"
        );
        let origin = match &recipe {
            Recipe::Values(t) | Recipe::Mxfp4 { codes: t, .. } => t.origin(),
        };
        if let Some(other) = self.tensors.iter().find(|t| t.spec.name == name) {
            bail!("gives {} a second time", other.spec.name);
        }
        self.tensors.push(MadeTensor {
            spec: TensorSpec {
                name: name.to_owned(),
                dims,
                ty,
            },
            file: origin.map_or(0, |s| s.shard.index),
            file_offset: origin.map_or(0, |s| s.offset),
        });
        self.made.push(Made {
            ty,
            n_per_row: dims.ne(0),
            recipe,
        });
        Ok(())
    }

    /// The type of a tensor, by llama.cpp's rules: vectors, norms, routers, biases and convolutions stay in
    /// float32.
    fn type_of(&self, name: &str, shape: &[u64]) -> GgmlType {
        let module = name.strip_suffix(".weight");
        let inner = module.map(|m| match m.strip_prefix("blk.") {
            Some(rest) => rest.split_once('.').map_or(rest, |(_, inner)| inner),
            None => m,
        });
        let matrix = inner
            .is_some_and(|m| shape.len() > 1 && !m.ends_with("_norm") && !ALWAYS_F32.contains(&m));
        if !matrix {
            return GgmlType::F32;
        }
        let n_in = shape.last().copied().unwrap_or(0);
        match self.out_type.row_bytes(n_in) {
            Some(_) => self.out_type,
            // Rows that do not fill blocks.
            None => GgmlType::F16,
        }
    }

    fn count(&self) -> ParameterCount {
        let mut count = ParameterCount::default();
        let mut expert_tensors = 0;
        for t in &self.tensors {
            let shape: Vec<u64> = t.spec.dims.iter().rev().copied().collect();
            count.add(&t.spec.name, &shape, &mut expert_tensors);
        }
        count.n_expert = count.n_expert.checked_div(expert_tensors).unwrap_or(0);
        count
    }
}
