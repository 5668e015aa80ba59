//! A table of tokens as llama.cpp keeps it: text, score and type by id.

use std::collections::HashMap;
use std::path::Path;

use anyhow::{Result, bail};

use super::super::super::gguf::{Array, GStringArray};

/// A token's type, with the numbers of `tokenizer.ggml.token_type` (SentencePiece's own).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub(super) enum TokenType {
    Normal = 1,
    Unknown = 2,
    Control = 3,
    UserDefined = 4,
    Unused = 5,
    Byte = 6,
}

/// One token.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Token {
    pub(super) text: String,
    pub(super) score: f32,
    pub(super) kind: TokenType,
}

/// The tokens, by id.
pub(super) struct TokenTable(Vec<Token>);

impl TokenTable {
    /// `n` unused tokens `[PADi]`, as the converter names ids that no token has.
    pub(super) fn padding(n: usize, score: f32) -> Self {
        TokenTable(
            (0..n)
                .map(|i| Token {
                    text: format!("[PAD{i}]"),
                    score,
                    kind: TokenType::Unused,
                })
                .collect(),
        )
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Puts a token at `id`; an id beyond the table is ignored, as the converter does.
    pub(super) fn set(&mut self, id: u32, text: String, score: f32, kind: TokenType) {
        if let Some(slot) = self.0.get_mut(id as usize) {
            *slot = Token { text, score, kind };
        }
    }

    /// Refuses tables on which llama.cpp ends the process instead of returning an error: two ids with
    /// the same text (it keeps texts up to a NUL byte, and names an empty one by its id).
    pub(super) fn check(&self, file: &Path) -> Result<()> {
        let mut seen: HashMap<String, usize> = HashMap::with_capacity(self.0.len());
        for (id, token) in self.0.iter().enumerate() {
            let text = token.text.split('\0').next().unwrap_or_default();
            let text = if text.is_empty() {
                format!("[EMPTY_{id}]")
            } else {
                text.to_owned()
            };
            if let Some(other) = seen.insert(text, id) {
                bail!(
                    "{}: tokens {other} and {id} have the same text {:?}; llama.cpp needs every token's \
                     text to be its own",
                    file.display(),
                    token.text
                );
            }
        }
        Ok(())
    }

    /// Refuses a SentencePiece table without a token for every byte that UTF-8 text has: llama.cpp falls
    /// back to these and ends the process where one is missing.
    pub(super) fn check_bytes(&self, file: &Path) -> Result<()> {
        let texts: std::collections::HashSet<&str> =
            self.0.iter().map(|t| t.text.as_str()).collect();
        // These bytes occur in no UTF-8 text.
        let never = |b: u8| matches!(b, 0xc0 | 0xc1 | 0xf5..=0xff);
        for byte in (0..=255u8).filter(|&b| !never(b)) {
            let has_char = byte.is_ascii() && texts.contains((byte as char).to_string().as_str());
            if !texts.contains(format!("<0x{byte:02X}>").as_str()) && !has_char {
                bail!(
                    "{}: the vocabulary has no byte-fallback token <0x{byte:02X}>; llama.cpp cannot tokenize \
                     with a SentencePiece vocabulary that lacks byte fallback",
                    file.display()
                );
            }
        }
        Ok(())
    }

    pub(super) fn texts(&self) -> Array {
        Array::Str(self.0.iter().map(|t| &t.text).collect::<GStringArray>())
    }

    pub(super) fn scores(&self) -> Array {
        Array::F32(self.0.iter().map(|t| t.score).collect())
    }

    pub(super) fn types(&self) -> Array {
        Array::I32(self.0.iter().map(|t| t.kind as i32).collect())
    }
}

/// Whether llama.cpp's converter takes an added token for a control token though its file does not call
/// it special.
pub(super) fn looks_special(text: &str) -> bool {
    matches!(text, "<pad>" | "<mask>" | "<2mass>" | "[@BOS@]")
        || (text.starts_with("<|") && text.ends_with("|>"))
        || (text.starts_with("<｜") && text.ends_with("｜>"))
        || (text.starts_with("<unused") && text.ends_with('>'))
}

/// Whether the text is a byte-fallback token, `<0x00>` to `<0xFF>`.
pub(super) fn is_byte_token(text: &str) -> bool {
    let b = text.as_bytes();
    b.len() == 6
        && b.starts_with(b"<0x")
        && b[5] == b'>'
        && b[3].is_ascii_hexdigit()
        && b[4].is_ascii_hexdigit()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_texts_are_refused_as_llama_cpp_sees_them() {
        let table = |texts: &[&str]| {
            let mut t = TokenTable::padding(texts.len(), 0.0);
            for (i, s) in texts.iter().enumerate() {
                t.set(i as u32, (*s).to_owned(), 0.0, TokenType::Normal);
            }
            t.check(Path::new("f"))
        };
        assert!(table(&["a", "b", ""]).is_ok());
        assert!(table(&["", ""]).is_ok());
        assert!(table(&["a", "b", "a"]).is_err());
        assert!(table(&["a\0b", "a"]).is_err());
        assert!(table(&["", "[EMPTY_0]"]).is_err());
    }

    #[test]
    fn byte_tokens_are_recognised() {
        assert!(is_byte_token("<0x0A>") && is_byte_token("<0xff>"));
        for no in ["<0x0G>", "<0x0A", "<0x00A>", "0x0A", "", "<0x€>"] {
            assert!(!is_byte_token(no), "{no}");
        }
    }

    #[test]
    fn a_table_without_byte_tokens_is_refused() {
        let mut table = TokenTable::padding(256, 0.0);
        for b in 0..=255u32 {
            table.set(b, format!("<0x{b:02X}>"), 0.0, TokenType::Byte);
        }
        assert!(table.check_bytes(Path::new("f")).is_ok());
        table.set(0x41, "A".into(), 0.0, TokenType::Normal);
        assert!(table.check_bytes(Path::new("f")).is_ok());
        table.set(0xe2, "x".into(), 0.0, TokenType::Normal);
        let e = table.check_bytes(Path::new("f")).unwrap_err().to_string();
        assert!(e.contains("<0xE2>"), "{e}");
    }
}
