//! SentencePiece models (`tokenizer.model`): the fields of the protobuf that a GGUF vocabulary needs.
//!
//! The messages are those of `sentencepiece_model.proto`: ModelProto { pieces = 1, trainer_spec = 2,
//! normalizer_spec = 3 }, SentencePiece { piece = 1, score = 2, type = 3 }, TrainerSpec { model_type = 3 },
//! NormalizerSpec { add_dummy_prefix = 3 }. Unknown fields are skipped. Every length is checked against
//! the bytes that are there before anything is allocated.

use std::path::Path;

use anyhow::{Result, anyhow, bail};

use super::files::MAX_VOCAB;
use super::tokens::is_byte_token;

/// A piece's type, with SentencePiece's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PieceType {
    Normal,
    Unknown,
    Control,
    UserDefined,
    Unused,
    Byte,
}

/// One piece.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Piece {
    pub(super) text: String,
    pub(super) score: f32,
    pub(super) kind: PieceType,
}

/// What is kept of a model.
#[derive(Debug)]
pub(super) struct SentencePieceModel {
    /// The pieces, by id.
    pub(super) pieces: Vec<Piece>,
    /// Whether a text gets a space in front.
    pub(super) add_dummy_prefix: bool,
}

impl SentencePieceModel {
    /// Parses the bytes of the file `path`.
    pub(super) fn parse(path: &Path, bytes: &[u8]) -> Result<Self> {
        Self::parse_message(bytes).map_err(|e| {
            anyhow!(
                "{}: not a usable SentencePiece model: {e:#}",
                path.display()
            )
        })
    }

    fn parse_message(bytes: &[u8]) -> Result<Self> {
        let mut pieces = Vec::new();
        // UNIGRAM is the proto's default.
        let mut model_type = 1;
        let mut add_dummy_prefix = true;
        let mut message = Message::new(bytes, 0);
        while let Some(field) = message.next()? {
            match field.number {
                1 => {
                    if pieces.len() == MAX_VOCAB {
                        bail!("field `pieces` has more than {MAX_VOCAB} pieces");
                    }
                    let name = format!("pieces[{}]", pieces.len());
                    pieces.push(parse_piece(field.message(&name)?, &name)?);
                }
                2 => {
                    let mut spec = field.message("trainer_spec")?;
                    while let Some(field) = spec.next()? {
                        if field.number == 3 {
                            model_type = field.varint("trainer_spec.model_type")?;
                        }
                    }
                }
                3 => {
                    let mut spec = field.message("normalizer_spec")?;
                    while let Some(field) = spec.next()? {
                        if field.number == 3 {
                            add_dummy_prefix =
                                field.varint("normalizer_spec.add_dummy_prefix")? != 0;
                        }
                    }
                }
                _ => {}
            }
        }
        if pieces.is_empty() {
            bail!("field `pieces` is empty");
        }
        if !pieces.iter().any(|p| p.kind == PieceType::Unknown) {
            bail!("field `pieces` has no piece of type UNKNOWN");
        }
        match model_type {
            // llama.cpp merges both kinds by score.
            1 | 2 => {}
            3 | 4 => bail!(
                "field `trainer_spec.model_type` is WORD or CHAR, which llama.cpp has no tokenizer for"
            ),
            other => bail!("field `trainer_spec.model_type` has the unknown value {other}"),
        }
        Ok(SentencePieceModel {
            pieces,
            add_dummy_prefix,
        })
    }
}

fn parse_piece(mut message: Message<'_>, name: &str) -> Result<Piece> {
    let mut text = None;
    let mut score = 0.0;
    let mut kind = PieceType::Normal;
    while let Some(field) = message.next()? {
        match field.number {
            1 => {
                let bytes = field.bytes(&format!("{name}.piece"))?;
                let s = std::str::from_utf8(bytes)
                    .map_err(|_| anyhow!("field `{name}.piece` is not UTF-8"))?;
                text = Some(s.to_owned());
            }
            2 => {
                score = field.float(&format!("{name}.score"))?;
                if !score.is_finite() {
                    bail!("field `{name}.score` is {score}");
                }
            }
            3 => {
                kind = match field.varint(&format!("{name}.type"))? {
                    1 => PieceType::Normal,
                    2 => PieceType::Unknown,
                    3 => PieceType::Control,
                    4 => PieceType::UserDefined,
                    5 => PieceType::Unused,
                    6 => PieceType::Byte,
                    other => bail!("field `{name}.type` has the unknown value {other}"),
                };
            }
            _ => {}
        }
    }
    let text = match text {
        Some(text) if !text.is_empty() => text,
        _ => bail!("field `{name}.piece` is empty"),
    };
    if kind == PieceType::Byte && !is_byte_token(&text) {
        bail!(
            "field `{name}.piece` is {text:?}, but its type is BYTE, whose pieces are <0x00> to <0xFF>"
        );
    }
    Ok(Piece { text, score, kind })
}

/// A protobuf message, field by field.
struct Message<'a> {
    bytes: &'a [u8],
    pos: usize,
    /// Where the message starts in the file, for errors.
    base: usize,
}

enum Payload<'a> {
    Varint(u64),
    Fixed64,
    Bytes(&'a [u8], usize),
    Fixed32([u8; 4]),
}

struct WireField<'a> {
    number: u64,
    payload: Payload<'a>,
    offset: usize,
}

impl<'a> Message<'a> {
    fn new(bytes: &'a [u8], base: usize) -> Self {
        Message {
            bytes,
            pos: 0,
            base,
        }
    }

    fn offset(&self) -> usize {
        self.base + self.pos
    }

    fn take(&mut self, n: u64) -> Result<&'a [u8]> {
        let left = &self.bytes[self.pos..];
        let n = usize::try_from(n)
            .ok()
            .filter(|&n| n <= left.len())
            .ok_or_else(|| {
                anyhow!(
                    "at byte {}: a field of {n} bytes where {} are left",
                    self.offset(),
                    left.len()
                )
            })?;
        self.pos += n;
        Ok(&left[..n])
    }

    fn varint(&mut self) -> Result<u64> {
        let start = self.offset();
        let mut value = 0u64;
        for i in 0..10 {
            let byte = self.take(1)?[0];
            let bits = u64::from(byte & 0x7f);
            if i == 9 && bits > 1 {
                break;
            }
            value |= bits << (7 * i);
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        bail!("at byte {start}: a variable-length integer of more than 64 bits")
    }

    fn next(&mut self) -> Result<Option<WireField<'a>>> {
        if self.pos == self.bytes.len() {
            return Ok(None);
        }
        let offset = self.offset();
        let key = self.varint()?;
        let number = key >> 3;
        if number == 0 || number > 0x1fff_ffff {
            bail!("at byte {offset}: field number {number} is not valid");
        }
        let payload = match key & 7 {
            0 => Payload::Varint(self.varint()?),
            1 => {
                self.take(8)?;
                Payload::Fixed64
            }
            2 => {
                let len = self.varint()?;
                let start = self.offset();
                Payload::Bytes(self.take(len)?, start)
            }
            5 => {
                let b = self.take(4)?;
                Payload::Fixed32([b[0], b[1], b[2], b[3]])
            }
            wire => bail!("at byte {offset}: wire type {wire} is not valid"),
        };
        Ok(Some(WireField {
            number,
            payload,
            offset,
        }))
    }
}

impl<'a> WireField<'a> {
    fn wrong(&self, name: &str) -> anyhow::Error {
        anyhow!("at byte {}: field `{name}` has the wrong type", self.offset)
    }

    fn varint(&self, name: &str) -> Result<u64> {
        match self.payload {
            Payload::Varint(v) => Ok(v),
            _ => Err(self.wrong(name)),
        }
    }

    fn float(&self, name: &str) -> Result<f32> {
        match self.payload {
            Payload::Fixed32(b) => Ok(f32::from_le_bytes(b)),
            _ => Err(self.wrong(name)),
        }
    }

    fn bytes(&self, name: &str) -> Result<&'a [u8]> {
        match self.payload {
            Payload::Bytes(b, _) => Ok(b),
            _ => Err(self.wrong(name)),
        }
    }

    fn message(&self, name: &str) -> Result<Message<'a>> {
        match self.payload {
            Payload::Bytes(b, start) => Ok(Message::new(b, start)),
            _ => Err(self.wrong(name)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn len_field(number: u8, payload: &[u8]) -> Vec<u8> {
        let mut v = vec![number << 3 | 2, payload.len() as u8];
        v.extend_from_slice(payload);
        v
    }

    fn piece(text: &str, score: f32, kind: u8) -> Vec<u8> {
        let mut p = len_field(1, text.as_bytes());
        p.push(2 << 3 | 5);
        p.extend_from_slice(&score.to_le_bytes());
        p.extend_from_slice(&[3 << 3, kind]);
        len_field(1, &p)
    }

    fn parse(bytes: &[u8]) -> Result<SentencePieceModel> {
        SentencePieceModel::parse(Path::new("tokenizer.model"), bytes)
    }

    #[test]
    fn pieces_and_specs_are_read() {
        let mut m = piece("<unk>", 0.0, 2);
        m.extend(piece("▁a", -1.5, 1));
        m.extend(len_field(
            2,
            &[3 << 3, 2, 8 << 3 | 1, 0, 0, 0, 0, 0, 0, 0, 0],
        ));
        m.extend(len_field(3, &[3 << 3, 0]));
        let model = parse(&m).unwrap();
        assert!(!model.add_dummy_prefix);
        assert_eq!(model.pieces[1].text, "▁a");
        assert_eq!(model.pieces[1].score, -1.5);
        assert_eq!(model.pieces[0].kind, PieceType::Unknown);
    }

    #[test]
    fn hostile_models_are_refused_with_the_field() {
        let good = piece("<unk>", 0.0, 2);
        let with = |extra: &[u8]| [good.as_slice(), extra].concat();
        let cases: [(Vec<u8>, &str); 11] = [
            (vec![], "`pieces` is empty"),
            (piece("a", 0.0, 1), "no piece of type UNKNOWN"),
            (with(&piece("a", 0.0, 9)), "`pieces[1].type`"),
            (with(&piece("a", f32::NAN, 1)), "`pieces[1].score`"),
            (with(&piece("", 0.0, 1)), "`pieces[1].piece` is empty"),
            (with(&piece("<0>", 0.0, 6)), "`pieces[1].piece`"),
            (with(&len_field(1, &len_field(1, b"\xff"))), "not UTF-8"),
            (
                with(&[1 << 3 | 2, 0xff, 0xff, 0xff, 0xff, 0x0f]),
                "bytes where 0 are left",
            ),
            (with(&[0x0b]), "wire type 3"),
            (with(&[0xff; 11]), "more than 64 bits"),
            (with(&[1 << 3, 1]), "`pieces[1]` has the wrong type"),
        ];
        for (bytes, wanted) in cases {
            let e = parse(&bytes).unwrap_err().to_string();
            assert!(e.starts_with("tokenizer.model: "), "{e}");
            assert!(e.contains(wanted), "{e:?} lacks {wanted:?}");
        }
    }

    #[test]
    fn no_prefix_of_a_model_panics() {
        let mut m = piece("<unk>", 0.0, 2);
        m.extend(piece("▁a", -1.5, 1));
        m.extend(len_field(3, &[3 << 3, 0]));
        for n in 0..m.len() {
            let _ = parse(&m[..n]);
            for b in [0u8, 0x7f, 0x80, 0xff] {
                let mut bad = m.clone();
                bad[n] = b;
                let _ = parse(&bad);
            }
        }
    }
}
