//! Special-token ids, add-token flags, normalizer flags and chat templates, found where llama.cpp's
//! converter (`SpecialVocab` of gguf-py) finds them and in its order, which is the order of the keys.

use std::path::Path;

use anyhow::{Result, bail};
use serde_json::{Map, Value};

use super::super::super::gguf;
use super::files::{self, Field, JsonFile, MAX_CONFIG_BYTES};

/// Chat templates.
enum Templates {
    One(String),
    /// (name, template)
    Named(Vec<(String, String)>),
}

/// What a tokenizer's files say about special tokens.
pub(super) struct Special {
    ids: Vec<(String, u32)>,
    add: Vec<(String, bool)>,
    templates: Option<Templates>,
    lowercase: Option<bool>,
    strip_accents: Option<bool>,
    /// Ids from here on are ignored.
    n_vocab: usize,
}

/// The key of a special token's id; `None` for kinds that GGUF has no key for.
fn id_key(kind: &str) -> Option<&'static str> {
    Some(match kind {
        "bos" => "tokenizer.ggml.bos_token_id",
        "eos" => "tokenizer.ggml.eos_token_id",
        "eot" => "tokenizer.ggml.eot_token_id",
        "eom" => "tokenizer.ggml.eom_token_id",
        "unk" => "tokenizer.ggml.unknown_token_id",
        "sep" => "tokenizer.ggml.seperator_token_id",
        "pad" => "tokenizer.ggml.padding_token_id",
        "mask" => "tokenizer.ggml.mask_token_id",
        _ => return None,
    })
}

/// The key of an add-token flag; `None` for kinds that GGUF has no key for.
fn add_key(kind: &str) -> Option<&'static str> {
    Some(match kind {
        "bos" => "tokenizer.ggml.add_bos_token",
        "eos" => "tokenizer.ggml.add_eos_token",
        "sep" => "tokenizer.ggml.add_sep_token",
        _ => return None,
    })
}

/// Whether a member of `tokenizer_config.json` counts as given: Python's truth of what these hold.
fn given(value: Option<&Value>) -> bool {
    match value {
        None | Some(Value::Null) | Some(Value::Bool(false)) => false,
        Some(Value::String(s)) => !s.is_empty(),
        Some(Value::Object(o)) => !o.is_empty(),
        Some(Value::Array(a)) => !a.is_empty(),
        Some(_) => true,
    }
}

/// `x.SpecialToken.id` of a template's piece.
fn special_id<'a>(piece: &Field<'a>) -> Result<Option<&'a str>> {
    match piece.get("SpecialToken")? {
        Some(token) => match token.get("id")? {
            Some(id) => Ok(Some(id.string()?).filter(|s| !s.is_empty())),
            None => Ok(None),
        },
        None => Ok(None),
    }
}

/// `x.Sequence.id` of a template's piece.
fn sequence_id<'a>(piece: &Field<'a>) -> Result<Option<&'a str>> {
    match piece.get("Sequence")? {
        Some(sequence) => sequence.get("id")?.map(|id| id.string()).transpose(),
        None => Ok(None),
    }
}

impl Special {
    /// Reads what `tokenizer.json`, `tokenizer_config.json`, the model's configuration and the chat
    /// templates beside them say. Ids from `n_vocab` on are ignored.
    pub(super) fn load(
        dir: &Path,
        tokenizer: Option<&JsonFile>,
        tokenizer_config: Option<&JsonFile>,
        config: &Value,
        n_vocab: usize,
    ) -> Result<Self> {
        let mut special = Special {
            ids: Vec::new(),
            add: Vec::new(),
            templates: None,
            lowercase: None,
            strip_accents: None,
            n_vocab,
        };
        let mut kinds: Vec<String> = ["bos", "eos", "unk", "sep", "pad", "cls", "mask"]
            .map(String::from)
            .to_vec();
        // Edited as the post-processor is read, then consulted.
        let mut tc: Map<String, Value> = match tokenizer_config {
            Some(file) => file.root().object()?.clone(),
            None => Map::new(),
        };
        let has_tc = !tc.is_empty();

        if let Some(file) = tokenizer {
            if let Some(normalizer) = file.root().get("normalizer")? {
                special.read_normalizer(&normalizer)?;
            }
            if has_tc {
                for (kind, stand_in) in [("bos_token", "cls_token"), ("eos_token", "sep_token")] {
                    if !given(tc.get(kind)) && given(tc.get(stand_in)) {
                        tc.insert(kind.to_owned(), tc[stand_in].clone());
                    }
                }
            }
            if let Some(post) = file.root().get("post_processor")? {
                let processors = match post.get("processors")? {
                    Some(list) => list.items()?.collect(),
                    None => vec![post],
                };
                for processor in processors {
                    special.read_post_processor(&processor, &mut tc, has_tc, &mut kinds)?;
                }
            }
        }

        if let (Some(file), true) = (tokenizer_config, has_tc) {
            special.templates = read_templates(dir, file)?;
            let edited = Value::Object(tc);
            let root = Field::root(&file.path, &edited);
            for kind in &kinds {
                if let Some(add) = root.get(&format!("add_{kind}_token"))?
                    && special.flag(kind).is_none()
                {
                    special.set_add(kind, add.bool()?);
                }
                let Some(entry) = root.get(&format!("{kind}_token"))? else {
                    continue;
                };
                let content = match entry.value {
                    Value::String(s) => s.as_str(),
                    Value::Object(_) => entry.require("content")?.string()?,
                    _ => return Err(entry.error("is neither a string nor an added token")),
                };
                if let Some(tokenizer) = tokenizer
                    && let Some(id) = added_token_id(tokenizer, content)?
                {
                    special.set_id(kind, id);
                }
            }
        }

        for kind in &kinds {
            let key = format!("{kind}_token_id");
            let value = [Some(config), config.get("text_config")]
                .into_iter()
                .flatten()
                .filter_map(|c| c.get(&key))
                .find(|v| !v.is_null());
            match value {
                // Older configurations write -1 for "none"; newer ones list several ids, of which the
                // converter takes none.
                Some(Value::Number(n)) if n.as_i64() != Some(-1) => {
                    let Some(id) = n.as_u64() else {
                        bail!(
                            "{}: field `{key}` is {n}, not a token id",
                            dir.join("config.json").display()
                        );
                    };
                    if let Ok(id) = u32::try_from(id) {
                        special.set_id(kind, id);
                    }
                }
                Some(Value::Number(_) | Value::Array(_)) | None => {}
                Some(other) => bail!(
                    "{}: field `{key}` is {}, not a token id",
                    dir.join("config.json").display(),
                    files::kind(other)
                ),
            }
        }
        Ok(special)
    }

    /// The id of a kind of special token, if one was found.
    pub(super) fn id(&self, kind: &str) -> Option<u32> {
        self.ids.iter().find(|(k, _)| k == kind).map(|&(_, id)| id)
    }

    /// Sets an id unless the kind has one already or the id is outside the vocabulary.
    pub(super) fn set_id(&mut self, kind: &str, id: u32) {
        if (id as usize) < self.n_vocab && self.id(kind).is_none() {
            self.ids.push((kind.to_owned(), id));
        }
    }

    /// Whether to add a kind of token, if the files say.
    pub(super) fn flag(&self, kind: &str) -> Option<bool> {
        self.add.iter().find(|(k, _)| k == kind).map(|&(_, v)| v)
    }

    /// Sets whether to add a kind of token, in place of what the files say.
    pub(super) fn set_add(&mut self, kind: &str, value: bool) {
        match self.add.iter_mut().find(|(k, _)| k == kind) {
            Some((_, v)) => *v = value,
            None => self.add.push((kind.to_owned(), value)),
        }
    }

    /// The keys and values, in the converter's order.
    pub(super) fn metadata(&self, out: &mut Vec<(String, gguf::Value)>) {
        for (kind, id) in &self.ids {
            if let Some(key) = id_key(kind) {
                out.push((key.to_owned(), (*id).into()));
            }
        }
        for (kind, value) in &self.add {
            if let Some(key) = add_key(kind) {
                out.push((key.to_owned(), (*value).into()));
            }
        }
        match &self.templates {
            None => {}
            Some(Templates::One(template)) => {
                out.push((
                    "tokenizer.chat_template".to_owned(),
                    template.as_str().into(),
                ));
            }
            Some(Templates::Named(list)) => named_templates(list, out),
        }
        if let Some(v) = self.lowercase {
            out.push(("tokenizer.ggml.normalizer.lowercase".to_owned(), v.into()));
        }
        if let Some(v) = self.strip_accents {
            out.push((
                "tokenizer.ggml.normalizer.strip_accents".to_owned(),
                v.into(),
            ));
        }
    }

    fn read_normalizer(&mut self, normalizer: &Field<'_>) -> Result<()> {
        match normalizer.kind()? {
            "Lowercase" => self.lowercase = Some(true),
            "StripAccents" => self.strip_accents = Some(true),
            "BertNormalizer" => {
                if let Some(v) = normalizer.get("lowercase")? {
                    self.lowercase = Some(v.bool()?);
                }
                if let Some(v) = normalizer.get("strip_accents")? {
                    self.strip_accents = Some(v.bool()?);
                }
            }
            "Sequence" => {
                for inner in normalizer.require("normalizers")?.items()? {
                    self.read_normalizer(&inner)?;
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn read_post_processor(
        &mut self,
        processor: &Field<'_>,
        tc: &mut Map<String, Value>,
        has_tc: bool,
        kinds: &mut Vec<String>,
    ) -> Result<()> {
        match processor.kind()? {
            "ByteLevel" => {
                for kind in ["bos", "eos"] {
                    if self.flag(kind).is_none() {
                        self.set_add(kind, false);
                    }
                }
            }
            "RobertaProcessing" => {
                for kind in ["bos", "eos", "sep"] {
                    self.set_add(kind, true);
                }
                for (kind, key) in [("cls", "cls_token"), ("sep", "sep_token")] {
                    if has_tc && !given(tc.get(key)) {
                        let token = match processor.get(kind)? {
                            Some(pair) => match pair.items()?.next() {
                                Some(text) => Value::from(text.string()?),
                                None => return Err(pair.error("is empty")),
                            },
                            None => continue,
                        };
                        tc.insert(key.to_owned(), token);
                    }
                }
            }
            "TemplateProcessing" => self.read_template(processor, tc, has_tc, kinds)?,
            _ => {}
        }
        Ok(())
    }

    /// Whether a template adds tokens in front, behind and between, found from its first and last pieces.
    fn read_template(
        &mut self,
        processor: &Field<'_>,
        tc: &mut Map<String, Value>,
        has_tc: bool,
        kinds: &mut Vec<String>,
    ) -> Result<()> {
        let pieces = |key: &str| -> Result<Vec<Field<'_>>> {
            Ok(match processor.get(key)? {
                Some(list) => list.items()?.collect(),
                None => Vec::new(),
            })
        };
        let single = pieces("single")?;
        let pair = pieces("pair")?;
        let is = |tc: &Map<String, Value>, key: &str, text: &str| {
            tc.get(key).and_then(Value::as_str) == Some(text)
        };
        let mut first = None;
        let mut last = None;
        if let [front, .., back] = single.as_slice() {
            first = special_id(front)?;
            if let Some(token) = first {
                if !has_tc {
                    tc.insert("bos_token".to_owned(), token.into());
                } else if !is(tc, "bos_token", token) && !is(tc, "cls_token", token) {
                    for key in ["bos_token", "cls_token"] {
                        if !given(tc.get(key)) {
                            tc.insert(key.to_owned(), token.into());
                        }
                    }
                }
                let known = is(tc, "bos_token", token) || is(tc, "cls_token", token);
                self.set_add("bos", known);
            }
            last = special_id(back)?;
            if let Some(token) = last {
                if !has_tc {
                    tc.insert("eos_token".to_owned(), token.into());
                } else if !is(tc, "eos_token", token) {
                    // What the configuration calls EOS is then the end of a turn or a message.
                    let former = tc.get("eos_token").cloned().unwrap_or(Value::Null);
                    if let Some(free) = ["eot", "eom"]
                        .into_iter()
                        .find(|k| !kinds.iter().any(|have| have == k))
                    {
                        kinds.push(free.to_owned());
                        tc.insert(format!("{free}_token"), former);
                    }
                    tc.insert("eos_token".to_owned(), token.into());
                }
                self.set_add("eos", true);
            }
        }
        if pair.is_empty() {
            return Ok(());
        }
        let mut middle = pair.as_slice();
        if let (Some(token), [front, rest @ ..]) = (first, middle)
            && special_id(front)? == Some(token)
        {
            middle = rest;
        }
        if let (Some(token), [rest @ .., back]) = (last, middle)
            && special_id(back)? == Some(token)
        {
            middle = rest;
        }
        // A [sep] [eos] B
        let [a, between @ .., b] = middle else {
            return Ok(());
        };
        if sequence_id(a)? != Some("A") || sequence_id(b)? != Some("B") || between.is_empty() {
            return Ok(());
        }
        let separates = |tc: &Map<String, Value>, token: &str| {
            is(tc, "sep_token", token) || is(tc, "eos_token", token)
        };
        let mut add_sep = false;
        if let Some(token) = special_id(&between[0])?
            && separates(tc, token)
            && last.is_none()
        {
            add_sep = true;
        }
        if let [_, second] = between
            && let Some(token) = special_id(second)?
            && separates(tc, token)
        {
            add_sep = true;
        }
        self.set_add("sep", add_sep);
        if add_sep && has_tc && !given(tc.get("sep_token")) {
            let eos = tc.get("eos_token").cloned().unwrap_or(Value::Null);
            tc.insert("sep_token".to_owned(), eos);
        }
        Ok(())
    }
}

/// The id of the first added token with this content.
fn added_token_id(tokenizer: &JsonFile, content: &str) -> Result<Option<u32>> {
    let Some(added) = tokenizer.root().get("added_tokens")? else {
        return Ok(None);
    };
    for token in added.items()? {
        if token.require("content")?.string()? == content {
            return Ok(Some(token.require("id")?.token_id()?));
        }
    }
    Ok(None)
}

/// The chat template of `tokenizer_config.json`, or else of `chat_template.jinja` with
/// `additional_chat_templates/*.jinja`, or else of `chat_template.json`.
fn read_templates(dir: &Path, tokenizer_config: &JsonFile) -> Result<Option<Templates>> {
    let root = tokenizer_config.root();
    if root.object()?.contains_key("chat_template") {
        return match root.get("chat_template")? {
            Some(field) => template_field(&field).map(Some),
            None => Ok(None),
        };
    }
    if let Some(template) = files::read_text(&dir.join("chat_template.jinja"), MAX_CONFIG_BYTES)? {
        let mut more = Vec::new();
        if let Ok(entries) = std::fs::read_dir(dir.join("additional_chat_templates")) {
            for entry in entries {
                let path = entry?.path();
                if path.extension().is_some_and(|e| e == "jinja")
                    && let Some(stem) = path.file_stem().and_then(|s| s.to_str())
                    && let Some(text) = files::read_text(&path, MAX_CONFIG_BYTES)?
                {
                    more.push((stem.to_owned(), text));
                }
            }
        }
        if more.is_empty() {
            return Ok(Some(Templates::One(template)));
        }
        // The order of a directory's entries is the file system's: sort for the same bytes every time.
        more.sort();
        more.insert(0, ("default".to_owned(), template));
        return Ok(Some(Templates::Named(more)));
    }
    if let Some(file) = JsonFile::open(dir.join("chat_template.json"), MAX_CONFIG_BYTES)?
        && let Some(field) = file.root().get("chat_template")?
    {
        return template_field(&field).map(Some);
    }
    Ok(None)
}

fn template_field(field: &Field<'_>) -> Result<Templates> {
    match field.value {
        Value::String(s) => Ok(Templates::One(s.clone())),
        Value::Array(_) => {
            let mut list = Vec::new();
            for choice in field.items()? {
                let name = choice.get("name")?.map_or(Ok(""), |n| n.string())?;
                if let Some(template) = choice.get("template")? {
                    list.push((name.to_owned(), template.string()?.to_owned()));
                }
            }
            Ok(Templates::Named(list))
        }
        other => Err(field.error(format_args!(
            "is {}, neither a template nor a list of templates",
            files::kind(other)
        ))),
    }
}

/// Keys for named templates: one each, the list of names, and the default one without a name.
fn named_templates(list: &[(String, String)], out: &mut Vec<(String, gguf::Value)>) {
    let mut default = None;
    let mut names: Vec<String> = Vec::new();
    for (name, template) in list {
        let name: String = name
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() { c } else { '_' })
            .collect();
        if name.is_empty() {
            continue;
        }
        if name == "default" {
            default = Some(template);
            continue;
        }
        let key = format!("tokenizer.chat_template.{name}");
        let value = gguf::Value::from(template.as_str());
        match out.iter_mut().find(|(k, _)| *k == key) {
            Some((_, v)) => *v = value,
            None => {
                out.push((key, value));
                names.push(name);
            }
        }
    }
    if !names.is_empty() {
        let names = gguf::Array::Str(names.iter().collect());
        out.push(("tokenizer.chat_templates".to_owned(), names.into()));
    }
    if let Some(template) = default {
        out.push((
            "tokenizer.chat_template".to_owned(),
            template.as_str().into(),
        ));
    }
}
