//! Hugging Face folders: safetensors, `config.json` and tokenizer to a GGUF model, without Python and without
//! an intermediate file.
//!
//! [`open`] gives a [`Gguf`](crate::gguf::Gguf) whose tensors are made from the mapped safetensors files when
//! they are asked for, a few rows at a time; the rest of the program treats it as any other model.
//!
//! * [`config`](Config), [`folder`](Folder): the files, checked.
//! * [`Lazy`]: tensors as views of stored ones: transposed, cut, permuted, stacked.
//! * [`families`]: one file a model family, which says what its tensors and parameters are called.
//! * [`Conversion`]: what all families share: names, types, metadata, stacking of experts, checks.
//! * [`vocab`]: the tokenizer's keys.

mod card;
mod check;
mod config;
mod conversion;
pub mod families;
mod folder;
mod made;
mod names;
mod parameters;
mod stored;
mod tensor;
pub mod vocab;

use std::path::Path;
use std::str::FromStr;

use anyhow::{Context, Result, bail};

pub use self::card::ParameterCount;
pub use self::config::Config;
pub use self::conversion::Conversion;
pub use self::families::Family;
pub use self::folder::Folder;
pub use self::stored::{BlockScales, Element, Shard, Stored};
pub use self::tensor::{Lazy, ReadAs};
use crate::gguf::{GgmlType, Gguf};
use crate::runtime::{Model, ModelOptions};

/// The type that the large tensors get; norms, routers, biases and the like are always float32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OutType {
    /// As the checkpoint: BF16 or F16 by the first tensor of such a type, else F16.
    #[default]
    Auto,
    /// This type: one of F32, F16, BF16, Q8_0.
    Fixed(GgmlType),
}

impl FromStr for OutType {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Ok(match text.to_ascii_lowercase().as_str() {
            "auto" => OutType::Auto,
            "f32" => OutType::Fixed(GgmlType::F32),
            "f16" => OutType::Fixed(GgmlType::F16),
            "bf16" => OutType::Fixed(GgmlType::BF16),
            "q8_0" => OutType::Fixed(GgmlType::Q8_0),
            _ => return Err(format!("'{text}' is none of bf16, f16, f32, q8_0, auto")),
        })
    }
}

/// How a folder is converted.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The type of the large tensors.
    pub out_type: OutType,
    /// How the vocabulary is read.
    pub vocab: vocab::VocabOptions,
}

/// A folder as a model.
#[derive(Debug)]
pub struct Converted {
    /// The model, its tensors made on demand.
    pub gguf: Gguf,
    /// What the user should know.
    pub notes: Vec<String>,
}

/// Opens a folder as a model. Only headers, JSON files and the tokenizer are read now.
///
/// # Errors
/// Names the file and the field: a missing or damaged file, an architecture that is not known, a tensor whose
/// shape contradicts `config.json`, experts or layers that are missing, no tokenizer.
pub fn open(dir: &Path, options: &Options) -> Result<Converted> {
    let config = Config::read(dir).context(
        "this is not the folder of a Hugging Face model, which has a config.json with the model's parameters",
    )?;
    let architecture = config.architecture()?;
    let Some(family) = families::find(architecture) else {
        let known: Vec<&str> = families::ALL
            .iter()
            .flat_map(|f| f.architectures)
            .copied()
            .collect();
        bail!(
            "{}: field 'architectures': '{architecture}' is not known; known are {}. Convert the model with llama.cpp's convert_hf_to_gguf.py and give the GGUF file instead",
            config.path().display(),
            known.join(", ")
        );
    };
    let folder = Folder::open(dir)?;
    let mut converted = conversion::convert(family, config, folder, options)?;
    // Which tensors a family must have is known by their reader.
    let check = ModelOptions {
        no_weights: true,
        ..ModelOptions::default()
    };
    if let Err(e) = Model::load_source(&converted.gguf, &check) {
        let text = format!("{e:#}");
        if ["missing tensor", "' not found", "wrong number of tensors"]
            .iter()
            .any(|w| text.contains(w))
        {
            return Err(e.context(format!(
                "{}: the safetensors files lack tensors of this model, or have some that llama.cpp does not know; download them again",
                dir.display()
            )));
        }
        // What llama.cpp cannot run says nothing against the files, and a later version may run it.
        converted.notes.push(format!(
            "warning: the llama.cpp linked here does not run this model: {text}"
        ));
    }
    Ok(converted)
}
