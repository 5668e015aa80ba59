//! Byte-level BPE vocabularies: llama.cpp's "gpt2".

use std::collections::HashMap;
use std::path::Path;

use anyhow::{Result, bail};

use super::super::super::gguf::{Array, GStringArray};
use super::files::{self, JsonFile, MAX_TOKENIZER_BYTES};
use super::tokenizer_json::{TokenizerJson, check_merge, outside, split_merge};
use super::tokens::{TokenTable, TokenType, looks_special};

/// The tokens of a byte-level vocabulary. Ids without a token become `[PADi]`; the table has
/// `vocab_size` tokens, or as many as the tokenizer if that is `None`.
pub(super) fn tokens(
    tokenizer: &TokenizerJson,
    tokenizer_config: Option<&JsonFile>,
    vocab: &HashMap<&str, u32>,
    vocab_size: Option<usize>,
) -> Result<TokenTable> {
    let file = tokenizer.file.path.as_path();
    let added = tokenizer.added_tokens(tokenizer_config, vocab)?;
    let n_tokens = vocab
        .values()
        .chain(added.keys())
        .max()
        .map_or(0, |&id| id as usize + 1);
    let vocab_size = vocab_size.unwrap_or(n_tokens);
    let mut table = TokenTable::padding(vocab_size, 0.0);
    for (&text, &id) in vocab {
        if id as usize >= vocab_size {
            return Err(outside(file, text, id, vocab_size));
        }
        table.set(id, text.to_owned(), 0.0, TokenType::Normal);
    }
    for (id, token) in added {
        if id as usize >= vocab_size {
            return Err(outside(file, &token.content, id, vocab_size));
        }
        // llama.cpp matches these tokens against the text itself, so it needs what they stand for.
        let mut text = if token.normalized {
            token.content
        } else {
            tokenizer.decode(&token.content)?
        };
        let kind = if token.special || looks_special(&text) {
            TokenType::Control
        } else {
            text = text.replace('▁', " ");
            TokenType::UserDefined
        };
        table.set(id, text, 0.0, kind);
    }
    Ok(table)
}

/// The merges in llama.cpp's form: two tokens with a space between, in order of rank. A space in a token
/// is written as the character that stands for it in the byte-level alphabet.
///
/// # Errors
/// The tokenizer has none, in `tokenizer.json` or `merges.txt`; or one is malformed or makes a token that
/// the vocabulary lacks.
pub(super) fn merges(
    dir: &Path,
    tokenizer: &TokenizerJson,
    vocab: &HashMap<&str, u32>,
) -> Result<Array> {
    let mut merges = tokenizer.merges(vocab)?;
    if merges.is_empty() {
        merges = merges_txt(&dir.join("merges.txt"), vocab)?;
    }
    if merges.is_empty() {
        bail!(
            "{}: field `model.merges` is empty and there is no merges.txt; llama.cpp needs the merges of a \
             byte-level vocabulary",
            tokenizer.file.path.display()
        );
    }
    let encode = |token: &str| token.replace(' ', "\u{120}");
    Ok(Array::Str(
        merges
            .iter()
            .map(|(a, b)| format!("{} {}", encode(a), encode(b)))
            .collect::<GStringArray>(),
    ))
}

/// The merges of GPT-2's older file: one a line, after a line that begins with `#`.
fn merges_txt(path: &Path, vocab: &HashMap<&str, u32>) -> Result<Vec<(String, String)>> {
    let Some(text) = files::read_text(path, MAX_TOKENIZER_BYTES)? else {
        return Ok(Vec::new());
    };
    let mut merges = Vec::new();
    for (i, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || (i == 0 && line.starts_with('#')) {
            continue;
        }
        let Some((left, right)) = split_merge(line) else {
            bail!(
                "{}: line {}: {line:?} is not two tokens with a space between",
                path.display(),
                i + 1
            );
        };
        if let Err(e) = check_merge(vocab, left, right) {
            bail!("{}: line {}: {e}", path.display(), i + 1);
        }
        merges.push((left.to_owned(), right.to_owned()));
    }
    Ok(merges)
}
