//! Saved log-probabilities of a reference model, in the file form of llama-perplexity's
//! `--kl-divergence-base`: 16 bits a value, scaled per row.
//!
//! Form: `_logits_`, u32 `n_ctx`, i32 `n_vocab`, i32 `n_chunk`, the tokens (i32, `n_chunk x n_ctx`), then for
//! each chunk the rows of positions `n_ctx/2 .. n_ctx-1`: f32 scale, f32 smallest log-probability, and
//! `n_vocab` u16 values, padded to an even number.

use std::fs::File;
use std::io::{BufReader, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use byteorder::{LittleEndian, ReadBytesExt, WriteBytesExt};

use crate::metrics::log_sum_exp;
use crate::output::AtomicFile;

const MAGIC: &[u8; 8] = b"_logits_";
/// Logits this far below the largest are stored as the smallest.
const RANGE: f32 = 16.0;

/// One row of log-probabilities in 16 bits each.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct CodedRow {
    scale: f32,
    min_log_prob: f32,
    values: Vec<u16>,
}

impl CodedRow {
    pub(super) fn encode(logits: &[f32]) -> Self {
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let min = logits
            .iter()
            .copied()
            .fold(f32::INFINITY, f32::min)
            .max(max - RANGE);
        let norm = log_sum_exp(logits) as f32;
        let scale = (max - min) / 65535.0;
        let values = logits
            .iter()
            .map(|&l| {
                if scale > 0.0 && l > min {
                    ((l - min) / scale).round_ties_even().clamp(0.0, 65535.0) as u16
                } else {
                    0
                }
            })
            .collect();
        Self {
            scale,
            min_log_prob: min - norm,
            values,
        }
    }

    pub(super) fn log_prob(&self, token: usize) -> f32 {
        self.scale * f32::from(self.values[token]) + self.min_log_prob
    }

    /// The likeliest token, the first of equals.
    pub(super) fn top(&self) -> usize {
        let mut best = 0;
        for (i, v) in self.values.iter().enumerate() {
            if *v > self.values[best] {
                best = i;
            }
        }
        best
    }
}

/// Writes a file of log-probabilities.
pub struct LogitsWriter {
    file: AtomicFile,
    target: PathBuf,
}

impl LogitsWriter {
    /// Starts the file with the evaluation's tokens, chunks of one length.
    ///
    /// # Errors
    /// The file cannot be created or has no room.
    pub fn create(target: &Path, n_vocab: usize, chunks: &[Vec<i32>]) -> Result<Self> {
        let n_ctx = chunks.first().map_or(0, Vec::len);
        ensure!(n_ctx >= 2, "no tokens to save log-probabilities of");
        let mut file = AtomicFile::create(target)?;
        let rows = (chunks.len() * (n_ctx - 1 - n_ctx / 2)) as u64;
        file.require_space(rows * (n_vocab as u64 + 5) * 2 + (chunks.len() * n_ctx * 4) as u64)?;
        let mut header = Vec::new();
        header.extend_from_slice(MAGIC);
        header.write_u32::<LittleEndian>(u32::try_from(n_ctx)?)?;
        header.write_i32::<LittleEndian>(i32::try_from(n_vocab)?)?;
        header.write_i32::<LittleEndian>(i32::try_from(chunks.len())?)?;
        for token in chunks.iter().flatten() {
            header.write_i32::<LittleEndian>(*token)?;
        }
        file.write_all(&header)
            .with_context(|| format!("{}: cannot write", target.display()))?;
        Ok(Self {
            file,
            target: target.to_owned(),
        })
    }

    pub(super) fn push(&mut self, row: &CodedRow) -> Result<()> {
        let mut bytes = Vec::with_capacity(row.values.len() * 2 + 10);
        bytes.write_f32::<LittleEndian>(row.scale)?;
        bytes.write_f32::<LittleEndian>(row.min_log_prob)?;
        for v in &row.values {
            bytes.write_u16::<LittleEndian>(*v)?;
        }
        if row.values.len() % 2 == 1 {
            bytes.write_u16::<LittleEndian>(0)?;
        }
        self.file
            .write_all(&bytes)
            .with_context(|| format!("{}: cannot write", self.target.display()))
    }

    /// Completes the file.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn finish(self) -> Result<()> {
        self.file.commit()
    }
}

/// Reads a file of log-probabilities.
pub struct LogitsReader {
    file: BufReader<File>,
    path: PathBuf,
    n_vocab: usize,
    chunks: Vec<Vec<i32>>,
}

impl LogitsReader {
    /// Opens a file and reads its tokens.
    ///
    /// # Errors
    /// Not such a file, or shorter than its header says.
    pub fn open(path: &Path) -> Result<Self> {
        let describe = || format!("{}: cannot read these log-probabilities", path.display());
        let meta = std::fs::metadata(path).with_context(describe)?;
        ensure!(meta.is_file(), "{}: not a regular file", path.display());
        let mut file = BufReader::with_capacity(1 << 20, File::open(path).with_context(describe)?);
        let mut magic = [0u8; 8];
        file.read_exact(&mut magic).with_context(describe)?;
        ensure!(
            &magic == MAGIC,
            "{}: not a file of log-probabilities (no _logits_ at its start)",
            path.display()
        );
        let n_ctx = file.read_u32::<LittleEndian>().with_context(describe)? as u64;
        let n_vocab = file.read_i32::<LittleEndian>().with_context(describe)?;
        let n_chunk = file.read_i32::<LittleEndian>().with_context(describe)?;
        ensure!(
            n_ctx >= 2 && n_vocab > 0 && n_chunk > 0,
            "{}: the header claims {n_chunk} chunks of {n_ctx} tokens of {n_vocab}",
            path.display()
        );
        let (n_vocab, n_chunk) = (n_vocab as u64, n_chunk as u64);
        let rows = n_chunk.checked_mul(n_ctx - 1 - n_ctx / 2);
        let row_bytes = n_vocab.div_ceil(2) * 4 + 8;
        let needed = rows
            .and_then(|r| r.checked_mul(row_bytes))
            .and_then(|r| r.checked_add(n_chunk.checked_mul(n_ctx)?.checked_mul(4)?))
            .and_then(|r| r.checked_add(20));
        ensure!(
            needed == Some(meta.len()),
            "{}: the header's {n_chunk} chunks of {n_ctx} tokens do not make {} bytes; the file is cut or damaged",
            path.display(),
            meta.len()
        );
        let mut chunks = Vec::with_capacity(n_chunk as usize);
        for _ in 0..n_chunk {
            let mut chunk = vec![0i32; n_ctx as usize];
            file.read_i32_into::<LittleEndian>(&mut chunk)
                .with_context(describe)?;
            chunks.push(chunk);
        }
        Ok(Self {
            file,
            path: path.to_owned(),
            n_vocab: n_vocab as usize,
            chunks,
        })
    }

    /// The tokens that were evaluated.
    pub fn chunks(&self) -> &[Vec<i32>] {
        &self.chunks
    }

    /// Size of the vocabulary.
    pub fn n_vocab(&self) -> usize {
        self.n_vocab
    }

    pub(super) fn next_row(&mut self) -> Result<CodedRow> {
        let mut read = || -> std::io::Result<CodedRow> {
            let scale = self.file.read_f32::<LittleEndian>()?;
            let min_log_prob = self.file.read_f32::<LittleEndian>()?;
            let mut values = vec![0u16; self.n_vocab.next_multiple_of(2)];
            self.file.read_u16_into::<LittleEndian>(&mut values)?;
            values.truncate(self.n_vocab);
            Ok(CodedRow {
                scale,
                min_log_prob,
                values,
            })
        };
        read().with_context(|| {
            format!(
                "{}: cannot read these log-probabilities",
                self.path.display()
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_keep_log_probabilities_to_their_resolution() {
        let logits: Vec<f32> = (0..101)
            .map(|i| ((i * 37) % 101) as f32 * 0.17 - 3.0)
            .collect();
        let row = CodedRow::encode(&logits);
        let norm = log_sum_exp(&logits) as f32;
        let max = logits.iter().copied().fold(f32::MIN, f32::max);
        for (i, l) in logits.iter().enumerate() {
            let expected = l.max(max - RANGE) - norm;
            assert!((row.log_prob(i) - expected).abs() < 2e-4, "{i}");
        }
        assert_eq!(row.top(), crate::metrics::argmax(&logits));
        let flat = CodedRow::encode(&[1.0; 8]);
        assert!((flat.log_prob(3) + 8f32.ln()).abs() < 1e-6);
    }

    #[test]
    fn files_survive_and_damage_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("l.kld");
        let chunks = vec![vec![1, 2, 3, 4, 5, 6], vec![6, 5, 4, 3, 2, 1]];
        let mut w = LogitsWriter::create(&path, 7, &chunks).unwrap();
        let rows: Vec<CodedRow> = (0..4)
            .map(|r| CodedRow::encode(&(0..7).map(|i| (i * r) as f32 * 0.3).collect::<Vec<_>>()))
            .collect();
        rows.iter().for_each(|r| w.push(r).unwrap());
        w.finish().unwrap();
        let mut r = LogitsReader::open(&path).unwrap();
        assert_eq!((r.chunks(), r.n_vocab()), (&chunks[..], 7));
        for row in &rows {
            assert_eq!(&r.next_row().unwrap(), row);
        }
        let bytes = std::fs::read(&path).unwrap();
        for cut in [0, 7, 12, 19, 25, bytes.len() - 1] {
            std::fs::write(&path, &bytes[..cut]).unwrap();
            assert!(LogitsReader::open(&path).is_err(), "{cut}");
        }
        let mut huge = bytes;
        huge[16..20].copy_from_slice(&i32::MAX.to_le_bytes());
        std::fs::write(&path, &huge).unwrap();
        assert!(LogitsReader::open(&path).is_err());
    }
}
