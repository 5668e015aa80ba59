//! The safetensors files of a folder.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use memmap2::Mmap;
use safetensors::{Dtype, SafeTensors};
use serde_json::Value as Json;

use super::config::{Config, read_json};
use super::stored::{BlockScales, Element, Shard, Stored};
use crate::gguf::SourceFile;

const INDEX: &str = "model.safetensors.index.json";

/// The tensors of a folder, file after file and by name in each, which is the order in which llama.cpp's
/// converter takes them.
#[derive(Debug)]
pub struct Folder {
    /// The folder.
    pub dir: PathBuf,
    /// Its safetensors files, and after them the others that are read.
    pub files: Vec<SourceFile>,
    /// Every tensor with the name it has in the model, in order.
    pub tensors: Vec<Arc<Stored>>,
}

impl Folder {
    /// Maps the files of a folder and reads their headers.
    ///
    /// # Errors
    /// Files are missing or damaged, or the index and the files disagree.
    pub fn open(dir: &Path) -> Result<Folder> {
        let index_path = dir.join(INDEX);
        let index = index_path
            .is_file()
            .then(|| read_index(&index_path))
            .transpose()?;
        let names: Vec<String> = match &index {
            Some(map) => map
                .values()
                .cloned()
                .collect::<BTreeSet<_>>()
                .into_iter()
                .collect(),
            None => find_files(dir)?,
        };
        let mut files = Vec::new();
        let mut tensors = Vec::new();
        let mut seen: BTreeMap<String, String> = BTreeMap::new();
        for (number, name) in names.iter().enumerate() {
            let path = dir.join(name);
            if index.is_some() && !path.is_file() {
                let tensor = index.iter().flatten().find(|(_, file)| *file == name);
                bail!(
                    "{}: field 'weight_map': tensor {} is in {name}, which is missing; put all files of the model into the folder",
                    index_path.display(),
                    tensor.map_or("?", |(t, _)| t)
                );
            }
            let shard = Arc::new(map_file(&path, name, number)?);
            files.push(SourceFile {
                bytes: shard.bytes.len() as u64,
                path: path.clone(),
            });
            for stored in read_header(&shard, &path)? {
                if let Some(other) = seen.insert(stored.name.clone(), name.clone()) {
                    bail!(
                        "{}: tensor {} is also in {other}; the files are of different models, download them again",
                        path.display(),
                        stored.name
                    );
                }
                tensors.push(stored);
            }
        }
        if let Some(index) = &index {
            for (tensor, file) in index {
                ensure!(
                    seen.get(tensor) == Some(file),
                    "{}: field 'weight_map': tensor {tensor} should be in {file} but is {}; the files are of different models or damaged, download them again",
                    index_path.display(),
                    seen.get(tensor)
                        .map_or("in none of the files".to_owned(), |f| format!("in {f}"))
                );
            }
            if let Some((tensor, file)) = seen.iter().find(|(t, _)| !index.contains_key(*t)) {
                bail!(
                    "{}: field 'weight_map': lacks tensor {tensor} of {file}; the files are of different models, download them again",
                    index_path.display()
                );
            }
        }
        // The small files come last: the first is the one that messages about the whole name.
        for name in [
            "config.json",
            "tokenizer.json",
            "tokenizer.model",
            "tokenizer_config.json",
        ] {
            let path = dir.join(name);
            if let Ok(meta) = std::fs::metadata(&path) {
                files.push(SourceFile {
                    bytes: meta.len(),
                    path,
                });
            }
        }
        ensure!(
            !tensors.is_empty(),
            "{}: the safetensors files hold no tensors",
            dir.display()
        );
        Ok(Folder {
            dir: dir.to_owned(),
            files,
            tensors: tensors.into_iter().map(Arc::new).collect(),
        })
    }

    /// Joins FP8 weights with their scales, which then are no tensors of their own, as
    /// `quantization_config` describes.
    ///
    /// # Errors
    /// The checkpoint is quantized in a way that is not understood, or a weight lacks its scales.
    pub fn resolve_quantization(&mut self, config: &Config) -> Result<()> {
        const FIELD: &str = "quantization_config";
        let settings = config.get(FIELD);
        let method = settings
            .and_then(|s| s.get("quant_method"))
            .and_then(Json::as_str);
        match (settings, method) {
            // MXFP4 blocks are taken up by the families that have them.
            (None, _) | (_, Some("mxfp4" | "fp8")) => {}
            (Some(_), method) => {
                return Err(config.error(
                    FIELD,
                    format!(
                        "says that the checkpoint is quantized with '{}', which cannot be converted; use the original checkpoint (BF16, F16, F32, FP8 with block scales, MXFP4)",
                        method.unwrap_or("an unnamed method")
                    ),
                ));
            }
        }
        let block = match settings.and_then(|s| s.get("weight_block_size")) {
            None | Some(Json::Null) => None,
            Some(value) => {
                let sizes: Option<Vec<u64>> = value
                    .as_array()
                    .and_then(|a| a.iter().map(|v| v.as_u64().filter(|n| *n > 0)).collect());
                match sizes.as_deref() {
                    Some(&[rows, cols]) => Some([rows, cols]),
                    _ => {
                        return Err(config.error(
                            "quantization_config.weight_block_size",
                            format!("is {value}, not two block sizes"),
                        ));
                    }
                }
            }
        };
        const SCALE: &str = "_scale_inv";
        let mut scales: BTreeMap<String, Arc<Stored>> = BTreeMap::new();
        self.tensors.retain(|t| {
            if let Some(weight) = t.name.strip_suffix(SCALE) {
                scales.insert(weight.to_owned(), t.clone());
            }
            !t.name.ends_with(SCALE) && !t.name.ends_with("activation_scale")
        });
        for tensor in &mut self.tensors {
            let scale = scales.remove(&tensor.name);
            if tensor.dtype != Dtype::F8_E4M3 {
                ensure!(
                    scale.is_none(),
                    "{}: has scales but is of type {}, not F8_E4M3",
                    tensor.describe(),
                    tensor.dtype
                );
                continue;
            }
            let Some(scale) = scale else {
                bail!(
                    "{}: is FP8 but has no scales ({}{SCALE} is missing); download the checkpoint again",
                    tensor.describe(),
                    tensor.name
                );
            };
            let joined = with_scales(tensor, &scale, block)?;
            *tensor = Arc::new(joined);
        }
        if let Some((weight, scale)) = scales.first_key_value() {
            bail!(
                "{}: scales of a weight that is missing: {weight}",
                scale.describe()
            );
        }
        Ok(())
    }
}

/// A weight with its scales, read to memory: they take a sixteen-thousandth of it.
fn with_scales(weight: &Stored, scale: &Stored, block: Option<[u64; 2]>) -> Result<Stored> {
    let n = weight.shape.len();
    ensure!(
        n >= 2,
        "{}: an FP8 weight of shape {:?}",
        weight.describe(),
        weight.shape
    );
    let (rows, cols) = (weight.shape[n - 2], weight.shape[n - 1]);
    // Without a block size one scale stands for the tensor.
    let block = block.unwrap_or([rows.max(1), cols.max(1)]);
    let blocks = [rows.div_ceil(block[0]), cols.div_ceil(block[1])];
    let mut expected = weight.shape.clone();
    expected[n - 2] = blocks[0];
    expected[n - 1] = blocks[1];
    let single =
        scale.n_elems() == 1 && blocks == [1, 1] && expected[..n - 2].iter().all(|d| *d == 1);
    ensure!(
        scale.shape == expected || single,
        "{}: shape {:?}, but scales of weight {:?} in blocks of {block:?} have {expected:?}",
        scale.describe(),
        scale.shape,
        weight.shape
    );
    ensure!(
        matches!(scale.dtype, Dtype::F32 | Dtype::BF16 | Dtype::F16),
        "{}: scales of type {} are not supported",
        scale.describe(),
        scale.dtype
    );
    let mut values = vec![0f32; scale.n_elems() as usize];
    f32::decode(scale, 0, &mut values)?;
    Ok(Stored {
        scales: Some(BlockScales {
            values: Arc::new(values),
            block,
            blocks,
        }),
        ..weight.clone()
    })
}

/// The index: the file of each tensor.
fn read_index(path: &Path) -> Result<BTreeMap<String, String>> {
    let json = read_json(path)?;
    let Some(map) = json.get("weight_map").and_then(Json::as_object) else {
        bail!(
            "{}: field 'weight_map' is missing or not an object",
            path.display()
        );
    };
    ensure!(
        !map.is_empty(),
        "{}: field 'weight_map' is empty",
        path.display()
    );
    map.iter()
        .map(|(tensor, file)| {
            let plain = file.as_str().filter(|f| is_plain_name(f));
            let file = plain.with_context(|| {
                format!(
                    "{}: field 'weight_map': tensor {tensor} is in {file}, which is not the name of a .safetensors file in this folder",
                    path.display()
                )
            })?;
            Ok((tensor.clone(), file.to_owned()))
        })
        .collect()
}

/// Whether a name stays in the folder: an index must not make us read other files.
fn is_plain_name(name: &str) -> bool {
    let mut parts = Path::new(name).components();
    name.ends_with(".safetensors")
        && !name.contains(['/', '\\', '\0'])
        && matches!(parts.next(), Some(Component::Normal(_)))
        && parts.next().is_none()
}

/// The files of a folder without an index.
fn find_files(dir: &Path) -> Result<Vec<String>> {
    let entries = std::fs::read_dir(dir)
        .with_context(|| format!("{}: cannot read the folder", dir.display()))?;
    let mut names = Vec::new();
    let mut pickled = false;
    for entry in entries {
        let entry = entry.with_context(|| format!("{}: cannot read the folder", dir.display()))?;
        let Ok(name) = entry.file_name().into_string() else {
            continue;
        };
        pickled |= name.starts_with("pytorch_model") && name.contains(".bin");
        if name.starts_with("model") && name.ends_with(".safetensors") {
            names.push(name);
        }
    }
    names.sort();
    if names.is_empty() && pickled {
        bail!(
            "{}: holds pytorch_model.bin, a Python pickle, which can run code when it is read and is not opened here; download the model as safetensors, or save it with save_pretrained(safe_serialization=True)",
            dir.display()
        );
    }
    ensure!(
        !names.is_empty(),
        "{}: holds no model.safetensors and no {INDEX}; give the folder of a Hugging Face model",
        dir.display()
    );
    if let [first, _, ..] = names.as_slice() {
        ensure!(
            names.iter().any(|n| n == "model.safetensors"),
            "{}: {INDEX} is missing, which says what {first} and the other files hold; download it too",
            dir.display()
        );
        return Ok(vec!["model.safetensors".to_owned()]);
    }
    if let Some((_, count)) = names[0]
        .strip_suffix(".safetensors")
        .and_then(|n| n.rsplit_once("-of-"))
        && count.trim_start_matches('0') != "1"
    {
        bail!(
            "{}: {} is one of {count} files; the others and {INDEX} are missing",
            dir.display(),
            names[0]
        );
    }
    Ok(names)
}

fn map_file(path: &Path, name: &str, index: usize) -> Result<Shard> {
    let meta = std::fs::metadata(path)
        .with_context(|| format!("{}: cannot find the file", path.display()))?;
    ensure!(meta.is_file(), "{}: is not a regular file", path.display());
    let file = File::open(path).with_context(|| format!("{}: cannot open", path.display()))?;
    let len = file
        .metadata()
        .with_context(|| format!("{}: cannot inspect", path.display()))?
        .len();
    ensure!(
        len >= 8,
        "{}: has {len} bytes, too few for a safetensors file; download it again",
        path.display()
    );
    // SAFETY: the mapping is private and read-only. Another process that shrinks the file meanwhile would make
    // reads fault; no reader of mapped models can exclude that.
    let bytes = unsafe { Mmap::map(&file) }
        .with_context(|| format!("{}: cannot map the file into memory", path.display()))?;
    Ok(Shard {
        index,
        name: path.display().to_string(),
        bytes,
    })
    .inspect(|_| debug_assert!(path.ends_with(name)))
}

/// The tensors of a file, by name. The safetensors crate checks that they fill the file exactly.
fn read_header(shard: &Arc<Shard>, path: &Path) -> Result<Vec<Stored>> {
    let (header, metadata) = SafeTensors::read_metadata(&shard.bytes).map_err(|e| {
        anyhow::anyhow!(
            "{}: the header (the first 8 bytes and the JSON after them) is damaged or the file was cut off: {e}; download it again",
            path.display()
        )
    })?;
    let mut tensors: Vec<Stored> = metadata
        .tensors()
        .into_iter()
        .map(|(name, info)| Stored {
            name,
            shard: shard.clone(),
            dtype: info.dtype,
            shape: info.shape.iter().map(|d| *d as u64).collect(),
            offset: (8 + header + info.data_offsets.0) as u64,
            scales: None,
        })
        .collect();
    for t in &tensors {
        ensure!(
            t.dtype.bitsize() >= 8,
            "{}: data of type {} cannot be converted",
            t.describe(),
            t.dtype
        );
    }
    tensors.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    Ok(tensors)
}
