//! SentencePiece vocabularies: llama.cpp's "llama", from `tokenizer.model` or from a `tokenizer.json` that
//! was made of one.

use std::collections::HashMap;
use std::path::Path;

use anyhow::Result;

use super::files::{Field, JsonFile, MAX_CONFIG_BYTES, MAX_TOKENIZER_BYTES, MAX_VOCAB};
use super::sentencepiece::{PieceType, SentencePieceModel};
use super::tokenizer_json::{TokenizerJson, outside};
use super::tokens::{TokenTable, TokenType, is_byte_token, looks_special};

/// The score of ids that no token has.
const PADDING_SCORE: f32 = -10_000.0;
/// The score of added tokens.
const ADDED_SCORE: f32 = -1000.0;

/// A vocabulary and whether its tokenizer puts a space in front of a text.
pub(super) struct Spm {
    pub(super) table: TokenTable,
    pub(super) add_space_prefix: bool,
}

/// What makes an added token beside `tokenizer.model` a control token.
#[derive(Clone, Copy)]
pub(super) enum AddedRule<'a> {
    /// Being called special, or looking like it.
    Usual,
    /// Phi: being called special, nothing else; the added tokens of this `tokenizer.json` count too.
    Phi(Option<&'a JsonFile>),
}

impl AddedRule<'_> {
    fn apply(self, text: &str, special: bool) -> (String, TokenType) {
        match self {
            AddedRule::Usual => added(text, special),
            AddedRule::Phi(_) if special => (text.to_owned(), TokenType::Control),
            AddedRule::Phi(_) => (text.to_owned(), TokenType::UserDefined),
        }
    }
}

/// Reads `tokenizer.model`, then `added_tokens.json` and `added_tokens_decoder` of
/// `tokenizer_config.json`. The table has `vocab_size` tokens, or as many as the model if that is `None`;
/// tokens beyond it are left out, as llama.cpp's converter does.
pub(super) fn from_model(
    dir: &Path,
    bytes: &[u8],
    tokenizer_config: Option<&JsonFile>,
    vocab_size: Option<usize>,
    rule: AddedRule<'_>,
) -> Result<Spm> {
    let model = SentencePieceModel::parse(&dir.join("tokenizer.model"), bytes)?;
    let vocab_size = vocab_size.unwrap_or(model.pieces.len());
    let mut table = TokenTable::padding(vocab_size, PADDING_SCORE);
    for (id, piece) in model.pieces.into_iter().enumerate() {
        let kind = match piece.kind {
            // The converter keeps user-defined pieces as normal ones; added tokens come below.
            PieceType::Normal | PieceType::UserDefined => TokenType::Normal,
            PieceType::Unknown => TokenType::Unknown,
            PieceType::Control => TokenType::Control,
            PieceType::Unused => TokenType::Unused,
            PieceType::Byte => TokenType::Byte,
        };
        table.set(id as u32, piece.text, piece.score, kind);
    }
    if let Some(file) = JsonFile::open(dir.join("added_tokens.json"), MAX_TOKENIZER_BYTES)? {
        let root = file.root();
        for text in root.object()?.keys() {
            let id = root.require(text)?.token_id()?;
            table.set(id, text.clone(), ADDED_SCORE, TokenType::UserDefined);
        }
    }
    if let Some(config) = tokenizer_config
        && let Some(decoder) = config.root().get("added_tokens_decoder")?
    {
        for key in decoder.object()?.keys() {
            let Some(id) = key
                .parse::<u32>()
                .ok()
                .filter(|&id| (id as usize) < MAX_VOCAB)
            else {
                return Err(
                    decoder.error(format_args!("has the key {key:?}, which is not a token id"))
                );
            };
            let token = decoder.require(key)?;
            let text = token.require("content")?.string()?;
            let (text, kind) = rule.apply(text, token.flag("special", false)?);
            table.set(id, text, ADDED_SCORE, kind);
        }
    }
    if let AddedRule::Phi(Some(file)) = rule
        && let Some(list) = file.root().get("added_tokens")?
    {
        for token in list.items()? {
            let id = token.require("id")?.token_id()?;
            let text = token.require("content")?.string()?;
            let (text, kind) = rule.apply(text, token.flag("special", false)?);
            table.set(id, text, ADDED_SCORE, kind);
        }
    }
    Ok(Spm {
        table,
        add_space_prefix: model.add_dummy_prefix,
    })
}

/// Text and type of an added token.
fn added(text: &str, special: bool) -> (String, TokenType) {
    if special || looks_special(text) {
        (text.to_owned(), TokenType::Control)
    } else {
        // llama.cpp matches these against the text, which has spaces.
        (text.replace('▁', " "), TokenType::UserDefined)
    }
}

/// Reads a `tokenizer.json` of kind [`Kind::SentencePiece`](super::tokenizer_json::Kind).
///
/// llama.cpp merges by the score of the merged piece, and scores of a BPE model are not in the file: they
/// are made from the order of the merges, as SentencePiece's own BPE models have them. (llama.cpp's
/// converter gives every piece the same score here, and then llama.cpp merges from left to right.)
pub(super) fn from_json(
    tokenizer: &TokenizerJson,
    tokenizer_config: Option<&JsonFile>,
    vocab_size: Option<usize>,
) -> Result<Spm> {
    let file = tokenizer.file.path.as_path();
    let (pieces, vocab, unk) = if tokenizer.model_type()? == "Unigram" {
        let unigram = tokenizer.unigram_vocab()?;
        let vocab: HashMap<&str, u32> = unigram
            .pieces
            .iter()
            .enumerate()
            .map(|(id, &(text, _))| (text, id as u32))
            .collect();
        let pieces: Vec<(u32, &str, f32)> = unigram
            .pieces
            .into_iter()
            .enumerate()
            .map(|(id, (text, score))| (id as u32, text, score))
            .collect();
        (pieces, vocab, unigram.unk)
    } else {
        let vocab = tokenizer.bpe_vocab()?;
        let mut ranks: HashMap<String, usize> = HashMap::new();
        for (left, right) in tokenizer.merges(&vocab)? {
            let next = ranks.len();
            ranks.entry(left + &right).or_insert(next);
        }
        let last = ranks.len();
        let pieces = vocab
            .iter()
            .map(|(&text, &id)| {
                let rank = ranks.get(text).copied().unwrap_or(last);
                (id, text, -(rank as f32))
            })
            .collect();
        let unk = tokenizer
            .unk_token()?
            .and_then(|text| vocab.get(text).copied());
        (pieces, vocab, unk)
    };
    let added_tokens = tokenizer.added_tokens(tokenizer_config, &vocab)?;
    let n_tokens = vocab
        .values()
        .chain(added_tokens.keys())
        .max()
        .map_or(0, |&id| id as usize + 1);
    let vocab_size = vocab_size.unwrap_or(n_tokens);
    let mut table = TokenTable::padding(vocab_size, PADDING_SCORE);
    for (id, text, score) in pieces {
        if id as usize >= vocab_size {
            return Err(outside(file, text, id, vocab_size));
        }
        let kind = if Some(id) == unk {
            TokenType::Unknown
        } else if is_byte_token(text) {
            TokenType::Byte
        } else {
            TokenType::Normal
        };
        table.set(id, text.to_owned(), score, kind);
    }
    for (id, token) in added_tokens {
        if id as usize >= vocab_size {
            return Err(outside(file, &token.content, id, vocab_size));
        }
        // Byte tokens are sometimes listed as added ones; they stay byte tokens.
        let (text, kind) = if is_byte_token(&token.content) {
            (token.content, TokenType::Byte)
        } else {
            added(&token.content, token.special)
        };
        table.set(id, text, ADDED_SCORE, kind);
    }
    let root = tokenizer.file.root();
    let mut add_space_prefix = false;
    for key in ["normalizer", "pre_tokenizer"] {
        if let Some(field) = root.get(key)? {
            add_space_prefix |= adds_prefix(&field)?;
        }
    }
    Ok(Spm {
        table,
        add_space_prefix,
    })
}

/// Whether a normalizer or pre-tokenizer puts a space in front of a text.
fn adds_prefix(field: &Field<'_>) -> Result<bool> {
    match field.kind()? {
        "Prepend" => Ok(true),
        "Metaspace" => match field.get("prepend_scheme")? {
            Some(scheme) => Ok(scheme.string()? != "never"),
            None => field.flag("add_prefix_space", true),
        },
        "Sequence" => {
            for key in ["normalizers", "pretokenizers"] {
                if let Some(list) = field.get(key)? {
                    for inner in list.items()? {
                        if adds_prefix(&inner)? {
                            return Ok(true);
                        }
                    }
                }
            }
            Ok(false)
        }
        _ => Ok(false),
    }
}

/// `add_prefix_space` of `tokenizer_config.json`, for the families whose converters heed it.
pub(super) fn configured_prefix(tokenizer_config: Option<&JsonFile>) -> Result<Option<bool>> {
    match tokenizer_config {
        Some(file) => file
            .root()
            .get("add_prefix_space")?
            .map(|f| f.bool())
            .transpose(),
        None => Ok(None),
    }
}

/// Opens `tokenizer_config.json`.
pub(super) fn tokenizer_config(dir: &Path) -> Result<Option<JsonFile>> {
    JsonFile::open(dir.join("tokenizer_config.json"), MAX_CONFIG_BYTES)
}
