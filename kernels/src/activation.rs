//! Activation rows in the forms that weights are multiplied with.
//!
//! Both quantized forms share one layout, blocks of 256 values in 320 bytes: 8 float scales (one for
//! each 32 values), 16 int16 sums of 16 quantized values each (those of even sixteens, then of odd ones, which
//! is the order that AVX2 scales in), 256 int8 values in -127..=127. The last
//! block of a row is filled up with zeros. One layout lets every kernel read every row; one scale a
//! block (Q8K) lets the kernels of 256-weight blocks scale in integers, one for 32 values (Q8) is as
//! fine as the blocks of the types that it serves.

use crate::{Error, Isa, error::at_least};

/// Values in a block of quantized activations.
pub(crate) const BLOCK: usize = 256;
/// Bytes of such a block.
pub(crate) const BLOCK_BYTES: usize = 320;
/// Offset of the sums in a block.
pub(crate) const SUMS: usize = 32;
/// Offset of the values in a block.
pub(crate) const VALUES: usize = 64;

/// The form of activations; [`crate::Type::activation`] says which one a type needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Activation {
    /// The floats themselves, in the machine's byte order.
    F32,
    /// int8 with a scale for each 32 values.
    Q8,
    /// int8 with a scale for each 256 values.
    Q8K,
}

impl Activation {
    /// Bytes of a row of `n_in` values.
    pub fn row_bytes(self, n_in: usize) -> usize {
        match self {
            Activation::F32 => n_in.saturating_mul(4),
            Activation::Q8 | Activation::Q8K => n_in.div_ceil(BLOCK).saturating_mul(BLOCK_BYTES),
        }
    }

    /// Write `values` in this form into the first [`Activation::row_bytes`] bytes of `out`.
    ///
    /// A value becomes `round(x * 127 / max |x|)`, ties to even, the same on every path. If a scale's
    /// values are not all finite, the scale is NaN and so are the products that it takes part in.
    pub fn quantize_row(self, isa: Isa, values: &[f32], out: &mut [u8]) -> Result<(), Error> {
        if !isa.is_available() {
            return Err(Error::Isa(isa));
        }
        let needed = self.row_bytes(values.len());
        at_least("activation row", out.len(), Some(needed))?;
        let out = &mut out[..needed];
        let group = match self {
            Activation::F32 => {
                for (bytes, value) in out.chunks_exact_mut(4).zip(values) {
                    bytes.copy_from_slice(&value.to_ne_bytes());
                }
                return Ok(());
            }
            Activation::Q8 => 32,
            Activation::Q8K => BLOCK,
        };
        for (values, block) in values.chunks(BLOCK).zip(out.chunks_exact_mut(BLOCK_BYTES)) {
            #[cfg(target_arch = "x86_64")]
            if isa != Isa::Scalar && values.len() == BLOCK {
                crate::x86::quantize_block(values, group, block);
                continue;
            }
            quantize_block(values, group, block);
        }
        Ok(())
    }

    /// What rounding took off `values`, into `out`: `values[i]` less what `row`, which [`Activation::quantize_row`]
    /// made of them, says. It is at most half a step, so that a second row of it makes the two about as fine as 15
    /// bits.
    ///
    /// # Errors
    /// `row` is shorter than a row of `values`.
    pub fn remainder(self, values: &[f32], row: &[u8], out: &mut Vec<f32>) -> Result<(), Error> {
        at_least(
            "activation row",
            row.len(),
            Some(self.row_bytes(values.len())),
        )?;
        out.clear();
        if self == Activation::F32 {
            out.resize(values.len(), 0.0);
            return Ok(());
        }
        for (values, block) in values.chunks(BLOCK).zip(row.chunks_exact(BLOCK_BYTES)) {
            let block = Block(block);
            let codes = block.values().chunks(32);
            for (j, (values, codes)) in values.chunks(32).zip(codes).enumerate() {
                let scale = block.scale(j);
                let rest = |(x, q): (&f32, &u8)| x - f32::from(*q as i8) * scale;
                out.extend(values.iter().zip(codes).map(rest));
            }
        }
        Ok(())
    }
}

/// Offset in a block of the sum of values `16 * j .. 16 * j + 16`.
const fn sum_at(j: usize) -> usize {
    SUMS + 2 * (j / 2 + j % 2 * 8)
}

/// Up to 256 values into one block.
fn quantize_block(values: &[f32], group: usize, block: &mut [u8]) {
    block.fill(0);
    for (g, values) in values.chunks(group).enumerate() {
        let (scale, inverse) = scale(values);
        for j in g * group / 32..(g + 1) * group / 32 {
            block[4 * j..4 * j + 4].copy_from_slice(&scale.to_ne_bytes());
        }
        let at = VALUES + g * group;
        for (q, value) in block[at..].iter_mut().zip(values) {
            *q = (value * inverse).round_ties_even() as i8 as u8;
        }
    }
    for j in 0..16 {
        let sum: i16 = block[VALUES + 16 * j..][..16]
            .iter()
            .map(|&q| i16::from(q as i8))
            .sum();
        let at = sum_at(j);
        block[at..at + 2].copy_from_slice(&sum.to_ne_bytes());
    }
}

/// The scale of a group and what its values are multiplied with.
fn scale(values: &[f32]) -> (f32, f32) {
    if values.iter().any(|x| !x.is_finite()) {
        return (f32::NAN, 0.0);
    }
    scale_of(values.iter().fold(0f32, |max, x| max.max(x.abs())))
}

/// The same from the largest magnitude, if all are finite.
pub(crate) fn scale_of(max: f32) -> (f32, f32) {
    // Below this the inverse would overflow; such values are nothing next to any other.
    if max < 1e-36 {
        (0.0, 0.0)
    } else {
        (max / 127.0, 127.0 / max)
    }
}

/// One block of a quantized row, read safely.
#[derive(Clone, Copy)]
pub(crate) struct Block<'a>(pub &'a [u8]);

impl<'a> Block<'a> {
    /// The scale of values `32 * j .. 32 * j + 32`.
    pub fn scale(self, j: usize) -> f32 {
        f32::from_ne_bytes([
            self.0[4 * j],
            self.0[4 * j + 1],
            self.0[4 * j + 2],
            self.0[4 * j + 3],
        ])
    }

    /// The sum of values `16 * j .. 16 * j + 16`.
    pub fn sum(self, j: usize) -> i32 {
        let at = sum_at(j);
        i32::from(i16::from_ne_bytes([self.0[at], self.0[at + 1]]))
    }

    pub fn values(self) -> &'a [u8] {
        &self.0[VALUES..BLOCK_BYTES]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_values_within_half_a_step() {
        let values: Vec<f32> = (0..288)
            .map(|i| ((i * 37 % 101) as f32 - 50.0) * (1 + i / 32) as f32)
            .collect();
        for form in [Activation::Q8, Activation::Q8K] {
            let mut out = vec![0xaa; form.row_bytes(values.len())];
            assert_eq!(out.len(), 640);
            form.quantize_row(Isa::Scalar, &values, &mut out).unwrap();
            for (i, &value) in values.iter().enumerate() {
                let block = Block(&out[i / 256 * BLOCK_BYTES..][..BLOCK_BYTES]);
                let scale = block.scale(i % 256 / 32);
                let back = f32::from(block.values()[i % 256] as i8) * scale;
                assert!(
                    (back - value).abs() <= scale * 0.501,
                    "{i}: {value} became {back}"
                );
            }
            for j in 0..16 {
                let block = Block(&out[..BLOCK_BYTES]);
                let sum: i32 = block.values()[16 * j..16 * j + 16]
                    .iter()
                    .map(|&q| i32::from(q as i8))
                    .sum();
                assert_eq!(block.sum(j), sum);
            }
            assert!(out[BLOCK_BYTES + VALUES + 32..].iter().all(|&q| q == 0));
        }
    }

    #[test]
    fn two_rows_are_finer() {
        let values: Vec<f32> = (0..288)
            .map(|i| ((i * 37 % 101) as f32 - 50.3) * (1 + i / 32) as f32)
            .collect();
        for form in [Activation::Q8, Activation::Q8K] {
            let mut rows = [vec![0; 640], vec![0; 640]];
            let mut rest = vec![1.0; 3];
            form.quantize_row(Isa::Scalar, &values, &mut rows[0])
                .unwrap();
            form.remainder(&values, &rows[0], &mut rest).unwrap();
            assert_eq!(rest.len(), values.len());
            form.quantize_row(Isa::Scalar, &rest, &mut rows[1]).unwrap();
            for (i, &value) in values.iter().enumerate() {
                let back: f32 = rows
                    .iter()
                    .map(|row| {
                        let block = Block(&row[i / 256 * BLOCK_BYTES..][..BLOCK_BYTES]);
                        f32::from(block.values()[i % 256] as i8) * block.scale(i % 256 / 32)
                    })
                    .sum();
                let step = Block(&rows[0][i / 256 * BLOCK_BYTES..]).scale(i % 256 / 32);
                assert!(
                    (back - value).abs() <= step / 250.0,
                    "{i}: {value} became {back}"
                );
            }
            assert!(
                form.remainder(&values, &rows[0][..639], &mut rest).is_err(),
                "a row that is too short"
            );
        }
        let mut rest = Vec::new();
        Activation::F32
            .remainder(&values, &[0; 4 * 288], &mut rest)
            .unwrap();
        assert_eq!(rest, [0.0; 288]);
        // NaN stays what it is.
        let mut row = vec![0; 320];
        let bad = [f32::INFINITY; 256];
        Activation::Q8K
            .quantize_row(Isa::Scalar, &bad, &mut row)
            .unwrap();
        Activation::Q8K.remainder(&bad, &row, &mut rest).unwrap();
        assert!(rest.iter().all(|x| x.is_nan()));
    }

    #[test]
    fn paths_agree() {
        let values: Vec<f32> = (0..512)
            .map(|i| ((i * 7919 % 1009) as f32 - 504.3) * 1.7f32.powi(i / 32))
            .collect();
        for (at, special) in [
            (0, 1.0),
            (100, f32::NAN),
            (511, f32::INFINITY),
            (256, f32::NEG_INFINITY),
            (3, 1e-40),
        ] {
            let mut values = values.clone();
            values[at] = special;
            if special == 1e-40 {
                values[..256].fill(special);
            }
            for form in [Activation::Q8, Activation::Q8K] {
                let mut expected = vec![0; 640];
                form.quantize_row(Isa::Scalar, &values, &mut expected)
                    .unwrap();
                for isa in Isa::available() {
                    let mut found = vec![1; 640];
                    form.quantize_row(isa, &values, &mut found).unwrap();
                    assert_eq!(expected, found, "{form:?} {isa:?} with {special}");
                }
            }
        }
    }

    #[test]
    fn bad_values() {
        let mut out = vec![0; 320];
        for bad in [f32::NAN, f32::INFINITY] {
            let mut values = vec![1.0; 256];
            values[40] = bad;
            Activation::Q8
                .quantize_row(Isa::Scalar, &values, &mut out)
                .unwrap();
            assert_eq!(Block(&out).scale(0), 1.0 / 127.0);
            assert!(Block(&out).scale(1).is_nan());
        }
        Activation::Q8K
            .quantize_row(Isa::Scalar, &[0.0; 256], &mut out)
            .unwrap();
        assert!(out.iter().all(|&b| b == 0));
        assert!(
            Activation::Q8K
                .quantize_row(Isa::Scalar, &[0.0; 257], &mut out)
                .is_err()
        );
    }
}
