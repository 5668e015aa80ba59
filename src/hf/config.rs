//! `config.json`, and the other small JSON files of a folder.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value as Json};

/// The largest JSON file that is read whole. Indices of large models take a few MiB.
const MAX_JSON: u64 = 256 << 20;

/// The model's parameters as `config.json` states them, those of `text_config` moved to the top.
#[derive(Clone, Debug)]
pub struct Config {
    path: PathBuf,
    values: Map<String, Json>,
}

impl Config {
    /// Reads `config.json` of a folder.
    ///
    /// # Errors
    /// The file is missing, is not JSON or not an object.
    pub fn read(dir: &Path) -> Result<Config> {
        let path = dir.join("config.json");
        let Json::Object(mut values) = read_json(&path)? else {
            bail!("{}: is not a JSON object", path.display());
        };
        if let Some(Json::Object(text)) = values.get("text_config").cloned() {
            // The architecture that counts is the outer one's: it names the whole checkpoint.
            for (key, value) in text {
                if key != "architectures" {
                    values.insert(key, value);
                }
            }
        }
        Ok(Config { path, values })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All values.
    pub fn json(&self) -> Json {
        Json::Object(self.values.clone())
    }

    /// The value of a field; null counts as absent, as it does in the models' own code.
    pub fn get(&self, field: &str) -> Option<&Json> {
        self.values.get(field).filter(|v| !v.is_null())
    }

    /// The first of `fields` that is present, with its name.
    pub fn find<'f>(&self, fields: &[&'f str]) -> Option<(&'f str, &Json)> {
        fields.iter().find_map(|f| Some((*f, self.get(f)?)))
    }

    /// Sets a field, for the rest of the conversion.
    pub fn set(&mut self, field: &str, value: impl Into<Json>) {
        self.values.insert(field.to_owned(), value.into());
    }

    /// An error about a field.
    pub fn error(&self, field: &str, problem: impl std::fmt::Display) -> anyhow::Error {
        anyhow::anyhow!("{}: field '{field}' {problem}", self.path.display())
    }

    /// The size that a field states, if it is there.
    ///
    /// # Errors
    /// The field is no number from 0 to 2^32 - 1.
    pub fn opt_u32(&self, field: &str) -> Result<Option<u32>> {
        let Some(value) = self.get(field) else {
            return Ok(None);
        };
        as_u32(value).map(Some).ok_or_else(|| {
            self.error(
                field,
                format!("is {value}, not a number from 0 to {}", u32::MAX),
            )
        })
    }

    /// The size that a field states.
    ///
    /// # Errors
    /// As [`Config::opt_u32`], or the field is missing.
    pub fn u32(&self, field: &str) -> Result<u32> {
        self.opt_u32(field)?
            .ok_or_else(|| self.error(field, "is missing"))
    }

    /// The size that the first present of `fields` states.
    ///
    /// # Errors
    /// As [`Config::u32`].
    pub fn u32_of(&self, fields: &[&str]) -> Result<u32> {
        match self.find(fields) {
            Some((field, _)) => self.u32(field),
            None => bail!(
                "{}: field '{}' is missing",
                self.path.display(),
                fields.join("' or '")
            ),
        }
    }

    /// The number that a field states, if it is there.
    ///
    /// # Errors
    /// The field is not a finite number.
    pub fn opt_f32(&self, field: &str) -> Result<Option<f32>> {
        let Some(value) = self.get(field) else {
            return Ok(None);
        };
        match value.as_f64().map(|v| v as f32) {
            Some(v) if v.is_finite() => Ok(Some(v)),
            _ => Err(self.error(field, format!("is {value}, not a number"))),
        }
    }

    /// The number that a field states.
    ///
    /// # Errors
    /// As [`Config::opt_f32`], or the field is missing.
    pub fn f32(&self, field: &str) -> Result<f32> {
        self.opt_f32(field)?
            .ok_or_else(|| self.error(field, "is missing"))
    }

    /// Whether a field is true; absent is false.
    ///
    /// # Errors
    /// The field is neither true nor false.
    pub fn flag(&self, field: &str) -> Result<bool> {
        match self.get(field) {
            None => Ok(false),
            Some(Json::Bool(b)) => Ok(*b),
            Some(value) => Err(self.error(field, format!("is {value}, not true or false"))),
        }
    }

    /// The strings of an array, if it is there.
    ///
    /// # Errors
    /// The field is not an array of strings.
    pub fn opt_strings(&self, field: &str) -> Result<Option<Vec<&str>>> {
        let Some(value) = self.get(field) else {
            return Ok(None);
        };
        value
            .as_array()
            .and_then(|a| a.iter().map(Json::as_str).collect())
            .map(Some)
            .ok_or_else(|| self.error(field, "is not an array of strings"))
    }

    /// The numbers of an array, if it is there.
    ///
    /// # Errors
    /// The field is not an array of numbers from 0 to 2^32 - 1.
    pub fn opt_u32s(&self, field: &str) -> Result<Option<Vec<u32>>> {
        let Some(value) = self.get(field) else {
            return Ok(None);
        };
        value
            .as_array()
            .and_then(|a| a.iter().map(as_u32).collect())
            .map(Some)
            .ok_or_else(|| self.error(field, "is not an array of sizes"))
    }

    /// The name of the architecture.
    ///
    /// # Errors
    /// `architectures` is missing, empty or not an array of strings.
    pub fn architecture(&self) -> Result<&str> {
        let names = self
            .opt_strings("architectures")?
            .ok_or_else(|| self.error("architectures", "is missing"))?;
        names
            .first()
            .copied()
            .ok_or_else(|| self.error("architectures", "is empty"))
    }

    /// Number of layers.
    ///
    /// # Errors
    /// The field is missing or beyond what any model has.
    pub fn n_layer(&self) -> Result<u32> {
        const FIELDS: &[&str] = &["n_layers", "num_hidden_layers", "n_layer", "num_layers"];
        let n = self.u32_of(FIELDS)?;
        ensure!(
            (1..=4096).contains(&n),
            self.error("num_hidden_layers", format!("is {n}, not from 1 to 4096"))
        );
        Ok(n)
    }

    /// Size of an attention head.
    ///
    /// # Errors
    /// The fields it follows from are missing or contradict each other.
    pub fn head_dim(&self) -> Result<u32> {
        match self.opt_u32("head_dim")? {
            Some(n) => Ok(n),
            None => {
                let heads = self.u32("num_attention_heads")?;
                ensure!(heads > 0, self.error("num_attention_heads", "is 0"));
                Ok(self.u32("hidden_size")? / heads)
            }
        }
    }

    /// Number of routed experts.
    ///
    /// # Errors
    /// No field states it.
    pub fn n_expert(&self) -> Result<u32> {
        self.u32_of(&[
            "num_local_experts",
            "num_experts",
            "n_routed_experts",
            "moe_num_experts",
        ])
    }

    /// The parameters of rotary position encoding: `rope_parameters`, or the older `rope_scaling`,
    /// with what older files state beside it.
    pub fn rope(&self) -> Map<String, Json> {
        let mut rope = match self.find(&["rope_parameters", "rope_scaling"]) {
            Some((_, Json::Object(map))) => map.clone(),
            _ => Map::new(),
        };
        if rope.contains_key("full_attention") || rope.contains_key("sliding_attention") {
            return rope;
        }
        const LOCAL: &[&str] = &[
            "local_rope_theta",
            "rope_local_theta",
            "rope_theta_local",
            "swa_rope_theta",
            "rope_local_base_freq",
        ];
        const GLOBAL: &[&str] = &[
            "global_rope_theta",
            "rope_global_theta",
            "rope_theta_global",
            "rope_theta",
            "rotary_emb_base",
        ];
        if let Some((_, theta)) = self.find(LOCAL) {
            let local = Map::from_iter([("rope_theta".to_owned(), theta.clone())]);
            rope.insert("sliding_attention".into(), Json::Object(local));
        }
        let mut fill = |key: &str, value: Option<Json>| {
            if let Some(value) = value
                && !rope.contains_key(key)
            {
                rope.insert(key.to_owned(), value);
            }
        };
        let first = |fields: &[&str]| self.find(fields).map(|(_, v)| v.clone());
        fill("rope_theta", first(GLOBAL));
        fill(
            "partial_rotary_factor",
            first(&["partial_rotary_factor", "rope_pct", "rope_percent"]),
        );
        fill(
            "original_max_position_embeddings",
            first(&["original_max_position_embeddings"]),
        );
        let ty = rope.get("type").cloned();
        if let Some(ty) = ty
            && !rope.contains_key("rope_type")
        {
            rope.insert("rope_type".into(), ty);
        }
        rope
    }
}

/// A whole number from 0 to 2^32 - 1, also when written as 4.0.
pub(super) fn as_u32(value: &Json) -> Option<u32> {
    if let Some(n) = value.as_u64() {
        return u32::try_from(n).ok();
    }
    value
        .as_f64()
        .filter(|v| v.fract() == 0.0 && (0.0..=f64::from(u32::MAX)).contains(v))
        .map(|v| v as u32)
}

/// Reads a JSON file.
///
/// # Errors
/// It cannot be read, is no regular file, too large, or not JSON.
pub(super) fn read_json(path: &Path) -> Result<Json> {
    let text = read_text(path, MAX_JSON)?;
    // The parser bounds its depth, so that nesting cannot exhaust the stack.
    serde_json::from_str(&text)
        .with_context(|| format!("{}: is not JSON; download it again", path.display()))
}

/// Reads a text file of at most `max` bytes.
pub(super) fn read_text(path: &Path, max: u64) -> Result<String> {
    let meta = std::fs::metadata(path)
        .with_context(|| format!("{}: cannot find the file", path.display()))?;
    ensure!(meta.is_file(), "{}: is not a regular file", path.display());
    ensure!(
        meta.len() <= max,
        "{}: has {} bytes, more than the {max} that such a file can have",
        path.display(),
        meta.len()
    );
    let bytes = std::fs::read(path).with_context(|| format!("{}: cannot read", path.display()))?;
    String::from_utf8(bytes).with_context(|| format!("{}: is not UTF-8 text", path.display()))
}
