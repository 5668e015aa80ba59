//! Every type without SIMD: rows as floats, and the dot products that define what all paths compute.
//!
//! For block types the integers are exact and the floats are taken in a fixed order, block after block:
//! `sum = fma(d_w * d_a, dot, sum)`, then with minimums `sum = fma(-(dmin_w * d_a), mins, sum)` for
//! blocks of 256 or `sum = fma(m_w, d_a * sum_a, sum)` for those of 32. Every path repeats this bit for bit.

use crate::{
    Error, Type, Weights,
    activation::{BLOCK, BLOCK_BYTES, Block},
    blocks::{Small, SmallType, Super, SuperType, by_type},
    error::at_least,
    f16::{bf16_to_f32, f16_to_f32},
};

/// A row of weights as floats, each exactly as ggml's reference code gives it.
///
/// # Errors
/// If `out` is not a whole number of blocks or `row` is too short for it.
pub fn dequantize_row(ty: Type, row: &[u8], out: &mut [f32]) -> Result<(), Error> {
    let needed = ty.row_bytes(out.len()).ok_or(Error::RowLength {
        ty,
        n_in: out.len(),
    })?;
    at_least("row", row.len(), Some(needed))?;
    let row = &row[..needed];
    by_type!(ty, false,
    super S => dequantize_super::<S>(row, out),
    small M => dequantize_small::<M>(row, out),
    float => for (x, bytes) in out.iter_mut().zip(row.chunks_exact(ty.block_bytes())) {
        *x = float(ty, bytes);
    });
    Ok(())
}

fn dequantize_super<S: SuperType>(row: &[u8], out: &mut [f32]) {
    let mut w = Super::ZERO;
    for (block, out) in row.chunks_exact(S::BYTES).zip(out.chunks_exact_mut(BLOCK)) {
        S::unpack(block, &mut w);
        for (i, x) in out.iter_mut().enumerate() {
            *x = w.d * f32::from(w.scale[i / 16]) * f32::from(w.q[i]);
            if S::HAS_MIN {
                *x -= w.dmin * f32::from(w.min[i / 16]);
            }
        }
    }
}

fn dequantize_small<M: SmallType>(row: &[u8], out: &mut [f32]) {
    let mut w = Small::ZERO;
    for (block, out) in row
        .chunks_exact(M::BYTES)
        .zip(out.chunks_exact_mut(32 * M::PIECES))
    {
        for (piece, out) in out.chunks_exact_mut(32).enumerate() {
            M::unpack(block, piece, &mut w);
            for (x, &q) in out.iter_mut().zip(&w.q) {
                *x = w.d * f32::from(q);
                if M::HAS_MIN {
                    *x += w.m;
                }
            }
        }
    }
}

/// A weight of a float type from its bytes.
fn float(ty: Type, bytes: &[u8]) -> f32 {
    match *bytes {
        [a, b, c, d] => f32::from_le_bytes([a, b, c, d]),
        [a, b] if ty == Type::BF16 => bf16_to_f32(u16::from_le_bytes([a, b])),
        [a, b] => f16_to_f32(u16::from_le_bytes([a, b])),
        _ => unreachable!("float types have 2 or 4 bytes"),
    }
}

/// The dot product of a row of weights with a row of activations in the type's form.
pub(crate) fn dot(weights: &Weights, r: usize, activation: &[u8]) -> f32 {
    let row = weights.row(r);
    by_type!(weights.ty(), weights.is_unpacked(),
        super S => dot_super::<S>(row, activation),
        small M => dot_small::<M>(row, activation),
        float => dot_float(weights.ty(), row, activation))
}

fn int_dot(q: &[i8], a: &[u8]) -> i32 {
    q.iter()
        .zip(a)
        .map(|(&q, &a)| i32::from(q) * i32::from(a as i8))
        .sum()
}

fn dot_super<S: SuperType>(row: &[u8], activation: &[u8]) -> f32 {
    let mut w = Super::ZERO;
    let mut sum = 0f32;
    for (block, a) in row
        .chunks_exact(S::BYTES)
        .zip(activation.chunks_exact(BLOCK_BYTES))
    {
        S::unpack(block, &mut w);
        let a = Block(a);
        let mut dot = 0i32;
        let mut mins = 0i32;
        for j in 0..16 {
            dot +=
                i32::from(w.scale[j]) * int_dot(&w.q[16 * j..16 * j + 16], &a.values()[16 * j..]);
            mins += i32::from(w.min[j]) * a.sum(j);
        }
        sum = (w.d * a.scale(0)).mul_add(dot as f32, sum);
        if S::HAS_MIN {
            sum = (-(w.dmin * a.scale(0))).mul_add(mins as f32, sum);
        }
    }
    sum
}

fn dot_small<M: SmallType>(row: &[u8], activation: &[u8]) -> f32 {
    let mut w = Small::ZERO;
    let mut sum = 0f32;
    let n = row.len() / M::BYTES * M::PIECES;
    for i in 0..n {
        M::unpack(
            &row[i / M::PIECES * M::BYTES..][..M::BYTES],
            i % M::PIECES,
            &mut w,
        );
        let a = Block(&activation[i / 8 * BLOCK_BYTES..][..BLOCK_BYTES]);
        let j = i % 8;
        let dot = int_dot(&w.q, &a.values()[32 * j..]);
        sum = (w.d * a.scale(j)).mul_add(dot as f32, sum);
        if M::HAS_MIN {
            let total = (a.sum(2 * j) + a.sum(2 * j + 1)) as f32;
            sum = w.m.mul_add(a.scale(j) * total, sum);
        }
    }
    sum
}

fn dot_float(ty: Type, row: &[u8], activation: &[u8]) -> f32 {
    let a = activation
        .chunks_exact(4)
        .map(|b| f32::from_ne_bytes([b[0], b[1], b[2], b[3]]));
    // Eight sums, as much for the rounding as for the compiler.
    let mut sums = [0f32; 8];
    for (i, (w, a)) in row.chunks_exact(ty.block_bytes()).zip(a).enumerate() {
        sums[i % 8] += float(ty, w) * a;
    }
    sums.iter().sum()
}
