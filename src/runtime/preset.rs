//! llama.cpp's own presets: which types they would give, and files made by libllama's quantize function.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fmt;
use std::path::Path;
use std::str::FromStr;

use anyhow::{Result, bail, ensure};
use llama_cpp_sys_2 as sys;

use super::log;
use super::model::c_path;
use crate::gguf::GgmlType;
use crate::output::AtomicFile;

/// A preset of llama-quantize, `Q4_K_M` say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Preset(usize);

/// Names that llama-quantize knows, with their file types.
const PRESETS: &[(&str, sys::llama_ftype)] = &[
    ("Q1_0", sys::LLAMA_FTYPE_MOSTLY_Q1_0),
    ("Q2_0", sys::LLAMA_FTYPE_MOSTLY_Q2_0),
    ("Q4_0", sys::LLAMA_FTYPE_MOSTLY_Q4_0),
    ("Q4_1", sys::LLAMA_FTYPE_MOSTLY_Q4_1),
    ("MXFP4_MOE", sys::LLAMA_FTYPE_MOSTLY_MXFP4_MOE),
    ("Q5_0", sys::LLAMA_FTYPE_MOSTLY_Q5_0),
    ("Q5_1", sys::LLAMA_FTYPE_MOSTLY_Q5_1),
    ("IQ2_XXS", sys::LLAMA_FTYPE_MOSTLY_IQ2_XXS),
    ("IQ2_XS", sys::LLAMA_FTYPE_MOSTLY_IQ2_XS),
    ("IQ2_S", sys::LLAMA_FTYPE_MOSTLY_IQ2_S),
    ("IQ2_M", sys::LLAMA_FTYPE_MOSTLY_IQ2_M),
    ("IQ1_S", sys::LLAMA_FTYPE_MOSTLY_IQ1_S),
    ("IQ1_M", sys::LLAMA_FTYPE_MOSTLY_IQ1_M),
    ("TQ1_0", sys::LLAMA_FTYPE_MOSTLY_TQ1_0),
    ("TQ2_0", sys::LLAMA_FTYPE_MOSTLY_TQ2_0),
    ("Q2_K", sys::LLAMA_FTYPE_MOSTLY_Q2_K),
    ("Q2_K_S", sys::LLAMA_FTYPE_MOSTLY_Q2_K_S),
    ("IQ3_XXS", sys::LLAMA_FTYPE_MOSTLY_IQ3_XXS),
    ("IQ3_S", sys::LLAMA_FTYPE_MOSTLY_IQ3_S),
    ("IQ3_M", sys::LLAMA_FTYPE_MOSTLY_IQ3_M),
    ("IQ3_XS", sys::LLAMA_FTYPE_MOSTLY_IQ3_XS),
    ("Q3_K_S", sys::LLAMA_FTYPE_MOSTLY_Q3_K_S),
    ("Q3_K_M", sys::LLAMA_FTYPE_MOSTLY_Q3_K_M),
    ("Q3_K_L", sys::LLAMA_FTYPE_MOSTLY_Q3_K_L),
    ("IQ4_NL", sys::LLAMA_FTYPE_MOSTLY_IQ4_NL),
    ("IQ4_XS", sys::LLAMA_FTYPE_MOSTLY_IQ4_XS),
    ("Q4_K_S", sys::LLAMA_FTYPE_MOSTLY_Q4_K_S),
    ("Q4_K_M", sys::LLAMA_FTYPE_MOSTLY_Q4_K_M),
    ("Q5_K_S", sys::LLAMA_FTYPE_MOSTLY_Q5_K_S),
    ("Q5_K_M", sys::LLAMA_FTYPE_MOSTLY_Q5_K_M),
    ("Q6_K", sys::LLAMA_FTYPE_MOSTLY_Q6_K),
    ("Q8_0", sys::LLAMA_FTYPE_MOSTLY_Q8_0),
    ("F16", sys::LLAMA_FTYPE_MOSTLY_F16),
    ("BF16", sys::LLAMA_FTYPE_MOSTLY_BF16),
];

/// Short forms that llama-quantize accepts.
const ALIASES: &[(&str, &str)] = &[("Q3_K", "Q3_K_M"), ("Q4_K", "Q4_K_M"), ("Q5_K", "Q5_K_M")];

impl Preset {
    /// Every preset, in llama-quantize's order.
    pub fn all() -> impl Iterator<Item = Preset> {
        (0..PRESETS.len()).map(Preset)
    }

    /// llama.cpp's number for it, the value of `general.file_type`.
    pub fn ftype(self) -> u32 {
        PRESETS[self.0].1
    }

    /// The preset's name for a value of `general.file_type`.
    pub fn from_ftype(ftype: u32) -> Option<Preset> {
        PRESETS.iter().position(|p| p.1 == ftype).map(Preset)
    }
}

impl fmt::Display for Preset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(PRESETS[self.0].0)
    }
}

impl FromStr for Preset {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        let name = ALIASES
            .iter()
            .find(|a| a.0.eq_ignore_ascii_case(s))
            .map_or(s, |a| a.1);
        PRESETS
            .iter()
            .position(|p| p.0.eq_ignore_ascii_case(name))
            .map(Preset)
            .ok_or_else(|| {
                let known: Vec<&str> = PRESETS.iter().map(|p| p.0).collect();
                format!(
                    "{s} is not a llama.cpp preset; known are {}",
                    known.join(", ")
                )
            })
    }
}

/// Importance data for libllama's quantize function: per tensor the mean squared activation of each input
/// channel, `n_in x n_expert` values.
pub type ImportanceData = BTreeMap<String, Vec<f32>>;

/// The type that the preset gives each tensor of the model at `source`, by tensor name. Nothing is quantized:
/// libllama's dry run is asked. `with_imatrix` says whether importance data would be given, for that changes
/// llama.cpp's choice.
///
/// # Errors
/// llama.cpp refuses the file or the preset.
pub fn preset_types(
    source: &Path,
    preset: Preset,
    with_imatrix: bool,
) -> Result<BTreeMap<String, GgmlType>> {
    super::init();
    let marker = BTreeMap::from([("moqa.dry.run".to_owned(), vec![1.0f32])]);
    let (status, lines) = log::capture(|| {
        quantize(
            source,
            None,
            preset,
            1,
            true,
            with_imatrix.then_some(&marker),
            &[],
            false,
        )
    });
    ensure!(
        status? == 0,
        "{}: llama.cpp cannot plan {preset} for this model{}",
        source.display(),
        log::explain()
    );
    let mut types = BTreeMap::new();
    for line in &lines {
        if let Some((name, ty)) = parse_dry_run_line(line) {
            types.insert(name.to_owned(), ty);
        }
    }
    if types.is_empty() {
        bail!("{}: llama.cpp's dry run named no tensor", source.display());
    }
    Ok(types)
}

/// `[   3/  63] blk.0.attn_k.weight - [256, 128, 1, 1], type = bf16, size = 0.06 MiB -> 0.01 MiB (q3_K)`
fn parse_dry_run_line(line: &str) -> Option<(&str, GgmlType)> {
    let (_, rest) = line.strip_prefix('[')?.split_once("] ")?;
    let (name, rest) = rest.split_once(" - [")?;
    let (_, rest) = rest.split_once("type = ")?;
    let (source_type, rest) = rest.split_once(',')?;
    let target = match rest.rsplit_once('(') {
        Some((_, t)) if rest.contains("->") => t.trim_end().strip_suffix(')')?,
        _ => source_type.trim(),
    };
    Some((name.trim(), GgmlType::from_name(target)?))
}

/// Writes `target` with libllama's own quantize function: what llama-quantize would write. `overrides` are
/// pairs of a tensor-name pattern and a type, as llama-quantize's `--tensor-type`; `pure` gives every tensor
/// the preset's base type. It gets its name when it is complete.
///
/// # Errors
/// llama.cpp refuses the file, the preset or the importance data, or cannot write.
pub fn write_preset(
    source: &Path,
    target: &Path,
    preset: Preset,
    n_threads: usize,
    importance: Option<&ImportanceData>,
    overrides: &[(String, GgmlType)],
    pure: bool,
) -> Result<()> {
    super::init();
    log::explain();
    let file = AtomicFile::create(target)?;
    let status = quantize(
        source,
        Some(file.path()?),
        preset,
        n_threads,
        false,
        importance,
        overrides,
        pure,
    )?;
    ensure!(
        status == 0,
        "{}: llama.cpp cannot quantize this model to {preset}{}",
        source.display(),
        log::explain()
    );
    file.commit()
}

#[allow(clippy::too_many_arguments)]
fn quantize(
    source: &Path,
    target: Option<&Path>,
    preset: Preset,
    n_threads: usize,
    dry_run: bool,
    importance: Option<&ImportanceData>,
    overrides: &[(String, GgmlType)],
    pure: bool,
) -> Result<u32> {
    let source = c_path(source)?;
    let target = c_path(target.unwrap_or(Path::new("none")))?;
    let names: Vec<CString> = importance
        .into_iter()
        .flat_map(|m| m.keys())
        .map(|k| CString::new(k.as_str()))
        .collect::<Result<_, _>>()?;
    let mut entries: Vec<sys::llama_model_imatrix_data> = importance
        .into_iter()
        .flat_map(|m| m.values())
        .zip(&names)
        .map(|(v, name)| sys::llama_model_imatrix_data {
            name: name.as_ptr(),
            data: v.as_ptr(),
            size: v.len(),
        })
        .collect();
    entries.push(sys::llama_model_imatrix_data {
        name: std::ptr::null(),
        data: std::ptr::null(),
        size: 0,
    });
    let patterns: Vec<CString> = overrides
        .iter()
        .map(|o| CString::new(o.0.as_str()))
        .collect::<Result<_, _>>()?;
    let mut tensor_overrides: Vec<sys::llama_model_tensor_override> = patterns
        .iter()
        .zip(overrides)
        .map(|(p, o)| sys::llama_model_tensor_override {
            pattern: p.as_ptr(),
            type_: o.1.id(),
        })
        .collect();
    tensor_overrides.push(sys::llama_model_tensor_override {
        pattern: std::ptr::null(),
        type_: sys::GGML_TYPE_COUNT,
    });
    // SAFETY: a plain value.
    let mut params = unsafe { sys::llama_model_quantize_default_params() };
    params.ftype = preset.ftype();
    params.nthread = n_threads.max(1) as i32;
    params.dry_run = dry_run;
    params.pure_ = pure;
    params.allow_requantize = true;
    if importance.is_some() {
        params.imatrix = entries.as_ptr();
    }
    if !overrides.is_empty() {
        params.tt_overrides = tensor_overrides.as_ptr();
    }
    // SAFETY: every pointer in the parameters lives until the call returns, and the lists end with a null entry.
    Ok(unsafe { sys::llama_model_quantize(source.as_ptr(), target.as_ptr(), &params) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dry_run_lines_are_understood() {
        let line = "[   3/  63] blk.0.attn_k.weight                  - [   256,    128,      1,      1], type =   bf16, size =     0.06 MiB ->     0.01 MiB (q3_K)";
        assert_eq!(
            parse_dry_run_line(line),
            Some(("blk.0.attn_k.weight", GgmlType::Q3_K))
        );
        let kept = "[   1/  63] output_norm.weight                   - [   256,      1,      1,      1], type =    f32, size =    0.001 MiB";
        assert_eq!(
            parse_dry_run_line(kept),
            Some(("output_norm.weight", GgmlType::F32))
        );
        assert_eq!(
            parse_dry_run_line("llama_model_loader: loaded meta data"),
            None
        );
    }

    #[test]
    fn presets_parse_and_print() {
        for preset in Preset::all() {
            assert_eq!(preset.to_string().parse::<Preset>().unwrap(), preset);
        }
        assert_eq!("q4_k".parse::<Preset>().unwrap().to_string(), "Q4_K_M");
        assert!("Q4_Z".parse::<Preset>().unwrap_err().contains("Q4_K_M"));
    }
}
