//! `tokenizer.json` of the `tokenizers` library: model, vocabulary, merges and added tokens.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use anyhow::{Result, anyhow, bail};
use serde_json::Value;

use super::byte_level;
use super::files::{self, Field, JsonFile, MAX_TOKENIZER_BYTES, MAX_VOCAB};
use super::tokens::is_byte_token;

/// Which of llama.cpp's tokenizers a `tokenizer.json` is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Byte-level BPE: llama.cpp's "gpt2".
    ByteLevel,
    /// BPE or Unigram over characters with byte fallback, as converted from SentencePiece: "llama".
    SentencePiece,
}

/// A token beside the model's vocabulary, or one of it that is matched before the text is split.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct AddedToken {
    pub(super) content: String,
    pub(super) special: bool,
    pub(super) normalized: bool,
}

/// The vocabulary of a Unigram model.
pub(super) struct Unigram<'a> {
    /// Pieces and their scores, by id.
    pub(super) pieces: Vec<(&'a str, f32)>,
    /// The unknown piece.
    pub(super) unk: Option<u32>,
}

/// An opened `tokenizer.json`.
pub(super) struct TokenizerJson {
    pub(super) file: JsonFile,
}

impl TokenizerJson {
    /// Opens the file in `dir`; `None` if there is none.
    pub(super) fn open(dir: &Path) -> Result<Option<Self>> {
        let file = JsonFile::open(dir.join("tokenizer.json"), MAX_TOKENIZER_BYTES)?;
        Ok(file.map(|file| TokenizerJson { file }))
    }

    fn model(&self) -> Result<Field<'_>> {
        self.file.root().require("model")
    }

    /// The model's type: `BPE`, `Unigram`.
    pub(super) fn model_type(&self) -> Result<&str> {
        let model = self.model()?;
        match model.get("type")? {
            Some(kind) => kind.string(),
            // Files of before 2020 leave it out where merges tell a BPE model.
            None if model.get("merges")?.is_some() => Ok("BPE"),
            None => Err(model.error("has no member `type`")),
        }
    }

    /// Which tokenizer of llama.cpp it is for.
    pub(super) fn kind(&self) -> Result<Kind> {
        let model = self.model()?;
        match self.model_type()? {
            "BPE" => {
                let fallback = model.flag("byte_fallback", false)?;
                let root = self.file.root();
                let has_byte_level = |key: &str| -> Result<bool> {
                    root.get(key)?
                        .map_or(Ok(false), |f| mentions(&f, "ByteLevel"))
                };
                let byte_level = has_byte_level("pre_tokenizer")? || has_byte_level("decoder")?;
                Ok(if fallback && !byte_level {
                    Kind::SentencePiece
                } else {
                    Kind::ByteLevel
                })
            }
            "Unigram" => Ok(Kind::SentencePiece),
            other => Err(model.require("type")?.error(format_args!(
                "is {other}; BPE and Unigram vocabularies can be converted"
            ))),
        }
    }

    /// Whether whole words found in the vocabulary are taken without merging.
    pub(super) fn ignore_merges(&self) -> Result<bool> {
        self.model()?.flag("ignore_merges", false)
    }

    /// The text of the unknown token of a BPE model, if it has one.
    pub(super) fn unk_token(&self) -> Result<Option<&str>> {
        self.model()?
            .get("unk_token")?
            .map(|f| f.string())
            .transpose()
    }

    /// The vocabulary of a BPE model: tokens and ids, no id twice.
    pub(super) fn bpe_vocab(&self) -> Result<HashMap<&str, u32>> {
        let field = self.model()?.require("vocab")?;
        let object = field.object()?;
        if object.is_empty() {
            return Err(field.error("is empty"));
        }
        if object.len() > MAX_VOCAB {
            return Err(field.error(format_args!("has more than {MAX_VOCAB} tokens")));
        }
        let mut by_id: HashMap<u32, &str> = HashMap::with_capacity(object.len());
        let mut vocab = HashMap::with_capacity(object.len());
        for (token, value) in object {
            let Some(id) = files::token_id(value) else {
                return Err(field.error(format_args!(
                    "gives the token {token:?} the id {value}; ids are integers from 0 to {}",
                    MAX_VOCAB - 1
                )));
            };
            if let Some(other) = by_id.insert(id, token) {
                return Err(field.error(format_args!(
                    "gives both {other:?} and {token:?} the id {id}"
                )));
            }
            vocab.insert(token.as_str(), id);
        }
        Ok(vocab)
    }

    /// The vocabulary of a Unigram model, no piece twice.
    pub(super) fn unigram_vocab(&self) -> Result<Unigram<'_>> {
        let model = self.model()?;
        let field = model.require("vocab")?;
        let items = field.items()?;
        if items.len() == 0 || items.len() > MAX_VOCAB {
            return Err(field.error(format_args!(
                "has {} pieces; 1 to {MAX_VOCAB} are possible",
                items.len()
            )));
        }
        let mut pieces = Vec::with_capacity(items.len());
        let mut seen = HashMap::with_capacity(items.len());
        for (id, item) in items.enumerate() {
            let (text, score) = match item.value {
                Value::Array(pair) => match pair.as_slice() {
                    [Value::String(text), Value::Number(score)] => (text, score),
                    _ => return Err(item.error("is not a piece and its score")),
                },
                _ => return Err(item.error("is not a piece and its score")),
            };
            let score = score.as_f64().unwrap_or(f64::NAN) as f32;
            if !score.is_finite() {
                return Err(item.error("has a score outside the range of a 32-bit float"));
            }
            if let Some(other) = seen.insert(text.as_str(), id) {
                return Err(item.error(format_args!("is the piece of `[{other}]` again")));
            }
            pieces.push((text.as_str(), score));
        }
        let unk = match model.get("unk_id")? {
            Some(id) => {
                let unk = id.token_id()?;
                if unk as usize >= pieces.len() {
                    return Err(id.error(format_args!("is {unk}, outside the vocabulary")));
                }
                Some(unk)
            }
            None => None,
        };
        Ok(Unigram { pieces, unk })
    }

    /// The merges of a BPE model in order of rank, checked against its vocabulary; empty if the file has
    /// none.
    pub(super) fn merges(&self, vocab: &HashMap<&str, u32>) -> Result<Vec<(String, String)>> {
        let Some(field) = self.model()?.get("merges")? else {
            return Ok(Vec::new());
        };
        let items = field.items()?;
        let mut merges = Vec::with_capacity(items.len());
        for item in items {
            let (left, right) = match item.value {
                Value::String(s) => split_merge(s).ok_or_else(|| {
                    item.error(format_args!(
                        "is {s:?}, not two tokens with a space between"
                    ))
                })?,
                Value::Array(pair) => match pair.as_slice() {
                    [Value::String(a), Value::String(b)] => (a.as_str(), b.as_str()),
                    _ => return Err(item.error("is not a pair of tokens")),
                },
                _ => return Err(item.error("is not a pair of tokens")),
            };
            check_merge(vocab, left, right).map_err(|e| item.error(e))?;
            merges.push((left.to_owned(), right.to_owned()));
        }
        Ok(merges)
    }

    /// The added tokens by id, as the `transformers` library has them after loading: those of
    /// `tokenizer.json`; those of `added_tokens_decoder` in `tokenizer_config.json`, whose properties
    /// prevail; and the tokens that it names as special ones.
    ///
    /// The library numbers added tokens itself and ignores the ids in the files; files whose ids are not
    /// the ones it would give are refused.
    ///
    /// `vocab` is the model's own vocabulary.
    pub(super) fn added_tokens(
        &self,
        tokenizer_config: Option<&JsonFile>,
        vocab: &HashMap<&str, u32>,
    ) -> Result<BTreeMap<u32, AddedToken>> {
        let mut list = AddedTokens {
            vocab,
            taken: vocab.values().copied().collect(),
            by_id: BTreeMap::new(),
            ids: HashMap::new(),
        };
        if let Some(added) = self.file.root().get("added_tokens")? {
            for field in added.items()? {
                let id = field.require("id")?.token_id()?;
                list.declare(&field, id)?;
            }
        }
        let Some(config) = tokenizer_config else {
            return Ok(list.by_id);
        };
        let root = config.root();
        if let Some(decoder) = root.get("added_tokens_decoder")? {
            let mut entries = Vec::new();
            for key in decoder.object()?.keys() {
                let id = key
                    .parse::<u32>()
                    .ok()
                    .filter(|&id| (id as usize) < MAX_VOCAB)
                    .ok_or_else(|| {
                        decoder.error(format_args!("has the key {key:?}, which is not a token id"))
                    })?;
                entries.push((id, decoder.require(key)?));
            }
            entries.sort_by_key(|&(id, _)| id);
            for (id, field) in entries {
                list.declare(&field, id)?;
            }
        }
        for key in [
            "bos_token",
            "eos_token",
            "unk_token",
            "sep_token",
            "pad_token",
            "cls_token",
            "mask_token",
        ] {
            if let Some(field) = root.get(key)? {
                list.name_special(&field)?;
            }
        }
        for key in ["additional_special_tokens", "extra_special_tokens"] {
            let Some(field) = root.get(key)? else {
                continue;
            };
            match field.value {
                Value::Object(o) => {
                    for key in o.keys() {
                        list.name_special(&field.require(key)?)?;
                    }
                }
                _ => {
                    for item in field.items()? {
                        list.name_special(&item)?;
                    }
                }
            }
        }
        Ok(list.by_id)
    }

    /// What the decoder makes of one token by itself.
    pub(super) fn decode(&self, token: &str) -> Result<String> {
        match self.file.root().get("decoder")? {
            Some(decoder) => decode(&decoder, token.to_owned()),
            None => Ok(token.to_owned()),
        }
    }
}

/// Whether a component or one that it consists of has this type.
fn mentions(field: &Field<'_>, kind: &str) -> Result<bool> {
    if field.kind()? != "Sequence" {
        return Ok(field.kind()? == kind);
    }
    for key in ["pretokenizers", "decoders"] {
        if let Some(list) = field.get(key)? {
            for inner in list.items()? {
                if mentions(&inner, kind)? {
                    return Ok(true);
                }
            }
        }
    }
    Ok(false)
}

fn decode(decoder: &Field<'_>, token: String) -> Result<String> {
    Ok(match decoder.kind()? {
        "ByteLevel" => byte_level::decode(&token),
        "Fuse" => token,
        "ByteFallback" => match is_byte_token(&token) {
            true => match u8::from_str_radix(&token[3..5], 16) {
                Ok(byte) => String::from_utf8_lossy(&[byte]).into_owned(),
                Err(_) => token,
            },
            false => token,
        },
        "Replace" => {
            let pattern = decoder.require("pattern")?;
            let content = decoder.require("content")?.string()?;
            match pattern.get("String")? {
                Some(s) if !s.string()?.is_empty() => token.replace(s.string()?, content),
                _ => return Err(pattern.error("is not a fixed string")),
            }
        }
        "Strip" => {
            let content = decoder.require("content")?.string()?;
            let count =
                |key: &str| -> Result<usize> { Ok(decoder.require(key)?.token_id()? as usize) };
            let mut text = token.as_str();
            for _ in 0..count("start")? {
                match text.strip_prefix(content) {
                    Some(rest) if !content.is_empty() => text = rest,
                    _ => break,
                }
            }
            for _ in 0..count("stop")? {
                match text.strip_suffix(content) {
                    Some(rest) if !content.is_empty() => text = rest,
                    _ => break,
                }
            }
            text.to_owned()
        }
        "Sequence" => {
            let mut token = token;
            for inner in decoder.require("decoders")?.items()? {
                token = decode(&inner, token)?;
            }
            token
        }
        other => {
            return Err(decoder.error(format_args!(
                "is of type {other}, which is not known for the vocabularies that can be converted"
            )));
        }
    })
}

/// The two tokens of a merge in its older form, `"left right"`.
pub(super) fn split_merge(s: &str) -> Option<(&str, &str)> {
    let (left, right) = s.split_once(' ')?;
    (!left.is_empty() && !right.is_empty() && !right.contains(' ')).then_some((left, right))
}

/// Whether the vocabulary has a merge's tokens and what they make.
pub(super) fn check_merge(
    vocab: &HashMap<&str, u32>,
    left: &str,
    right: &str,
) -> std::result::Result<(), String> {
    let merged = format!("{left}{right}");
    for token in [left, right, merged.as_str()] {
        if !vocab.contains_key(token) {
            return Err(format!(
                "merges {left:?} and {right:?}, but the vocabulary has no token {token:?}"
            ));
        }
    }
    Ok(())
}

struct AddedTokens<'a> {
    vocab: &'a HashMap<&'a str, u32>,
    /// Ids of the model's own tokens.
    taken: std::collections::HashSet<u32>,
    by_id: BTreeMap<u32, AddedToken>,
    ids: HashMap<String, u32>,
}

impl AddedTokens<'_> {
    fn known(&self, content: &str) -> Option<u32> {
        self.ids
            .get(content)
            .or_else(|| self.vocab.get(content))
            .copied()
    }

    /// The id that the library gives to the next new token.
    fn next_id(&self) -> u32 {
        let after = self.by_id.last_key_value().map_or(0, |(id, _)| id + 1);
        after.max(self.vocab.len() as u32)
    }

    fn insert(&mut self, field: &Field<'_>, id: u32, token: AddedToken) -> Result<()> {
        if id as usize >= MAX_VOCAB {
            return Err(field.error(format_args!("makes more than {MAX_VOCAB} tokens")));
        }
        self.ids.insert(token.content.clone(), id);
        self.by_id.insert(id, token);
        Ok(())
    }

    /// An added token written out in a file, with its id there.
    fn declare(&mut self, field: &Field<'_>, id: u32) -> Result<()> {
        let content = field.require("content")?.string()?;
        if content.is_empty() {
            return Err(field.error("has no content"));
        }
        let known = self.known(content);
        let given = known.unwrap_or_else(|| self.next_id());
        if given != id {
            return Err(field.error(match known {
                Some(_) => format!("gives {content:?} the id {id}, but its id is {given}"),
                None => format!(
                    "gives {content:?} the id {id}, but the next free id is {given}: the ids of added tokens \
                     have a gap or are out of order"
                ),
            }));
        }
        if known.is_none() && self.taken.contains(&id) {
            return Err(field.error(format_args!(
                "gives {content:?} the id {id}, which a token of the vocabulary has: the vocabulary's ids have gaps"
            )));
        }
        let special = field.flag("special", false)?;
        let token = AddedToken {
            content: content.to_owned(),
            special,
            // The library's own default.
            normalized: field.flag("normalized", !special)?,
        };
        self.insert(field, id, token)
    }

    /// A token that `tokenizer_config.json` names as a special one.
    fn name_special(&mut self, field: &Field<'_>) -> Result<()> {
        let (content, normalized) = match field.value {
            Value::String(s) => (s.as_str(), false),
            Value::Object(_) => (
                field.require("content")?.string()?,
                field.flag("normalized", false)?,
            ),
            _ => return Err(field.error("is neither a string nor an added token")),
        };
        if content.is_empty() {
            return Ok(());
        }
        if let Some(token) = self.ids.get(content).and_then(|id| self.by_id.get_mut(id)) {
            token.special = true;
            return Ok(());
        }
        let id = self.known(content).unwrap_or_else(|| self.next_id());
        if !self.vocab.contains_key(content) && self.taken.contains(&id) {
            return Err(field.error(format_args!(
                "names the token {content:?}, which the vocabulary lacks, and there is no room for it at id {id}"
            )));
        }
        let token = AddedToken {
            content: content.to_owned(),
            special: true,
            normalized,
        };
        self.insert(field, id, token)
    }
}

/// `vocab_size` of the model's configuration, of its text part if it has parts.
pub(super) fn config_vocab_size(dir: &Path, config: &Value) -> Result<Option<usize>> {
    let value = config
        .get("text_config")
        .and_then(|t| t.get("vocab_size"))
        .or_else(|| config.get("vocab_size"));
    let value = match value {
        None | Some(Value::Null) => return Ok(None),
        Some(value) => value,
    };
    match value.as_u64() {
        Some(n) if n > 0 && n <= MAX_VOCAB as u64 => Ok(Some(n as usize)),
        _ => bail!(
            "{}: field `vocab_size` is {value}; 1 to {MAX_VOCAB} is possible",
            dir.join("config.json").display()
        ),
    }
}

/// The error for a token whose id the model has no row for.
pub(super) fn outside(file: &Path, text: &str, id: u32, vocab_size: usize) -> anyhow::Error {
    anyhow!(
        "{}: the token {text:?} has the id {id}, but `vocab_size` in config.json is {vocab_size}",
        file.display()
    )
}
