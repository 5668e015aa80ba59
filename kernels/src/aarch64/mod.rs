//! Kernels for AArch64. Weights are unpacked by the portable code, four rows at a time, and multiplied as int8 with
//! `sdot`, `smmla` or, without either, widening multiplications.
//!
//! Tested under emulation only: their speed has not been measured.

mod dot;
mod mmla;

use crate::{
    Isa,
    activation::{BLOCK_BYTES, Block},
    blocks::{Small, SmallType, Super, SuperType, by_type},
    matmul::Job,
};

/// Rows that are unpacked together.
const ROWS: usize = 4;

/// Integer dot products of four rows with `T` activations, over `16 * J` values of each.
trait Kernel {
    /// Activations that are best taken together.
    const TOKENS: usize;

    /// `out[t][r]`: the sum over j of `scale[r][j]` times the dot product of values `16 * j ..`.
    ///
    /// # Safety
    /// Needs the instructions of the kernel.
    unsafe fn dots<const N: usize, const T: usize>(
        rows: &[[i8; N]; ROWS],
        scale: &[[i32; 16]; ROWS],
        acts: &[&[u8]; T],
    ) -> [[i32; ROWS]; T];
}

/// Do the job, if `isa` has code for its type; otherwise nothing.
pub(crate) fn matmul(isa: Isa, job: &Job, out: &mut [f32]) -> bool {
    match isa {
        Isa::Neon => run::<dot::Widening>(job, out),
        Isa::NeonDotprod => run::<dot::Dotprod>(job, out),
        Isa::NeonI8mm => run::<mmla::Mmla>(job, out),
        _ => false,
    }
}

fn run<K: Kernel>(job: &Job, out: &mut [f32]) -> bool {
    by_type!(job.weights.ty(), job.weights.is_unpacked(),
        super S => matmul_super::<K, S>(job, out),
        small M => matmul_small::<K, M>(job, out),
        float => return false);
    true
}

/// Blocks of four rows and the sums of all activations with them.
fn quads(job: &Job, out: &mut [f32], mut work: impl FnMut([&[u8]; ROWS], &mut [[f32; ROWS]])) {
    let n_rows = job.rows.len();
    let mut sums = vec![[0f32; ROWS]; job.act_rows.len()];
    for first in (0..n_rows).step_by(ROWS) {
        // Rows past the last one are computed as the last one and dropped.
        let rows = std::array::from_fn(|i| {
            job.weights
                .row(job.rows.start + (first + i).min(n_rows - 1))
        });
        sums.fill([0.0; ROWS]);
        work(rows, &mut sums);
        let keep = ROWS.min(n_rows - first);
        for (t, sums) in sums.iter().enumerate() {
            out[t * n_rows + first..][..keep].copy_from_slice(&sums[..keep]);
        }
    }
}

/// `f` for tiles of the activations: where they start, and how many there are, 1 or `K::TOKENS`.
fn tiles<K: Kernel>(n: usize, mut f: impl FnMut(usize, usize)) {
    let mut t = 0;
    while t < n {
        let tile = if n - t >= K::TOKENS { K::TOKENS } else { 1 };
        f(t, tile);
        t += tile;
    }
}

fn matmul_super<K: Kernel, S: SuperType>(job: &Job, out: &mut [f32]) {
    let mut unpacked = [Super::ZERO; ROWS];
    quads(job, out, |rows, sums| {
        for b in 0..rows[0].len() / S::BYTES {
            for (row, w) in rows.iter().zip(&mut unpacked) {
                S::unpack(&row[b * S::BYTES..][..S::BYTES], w);
            }
            let codes = std::array::from_fn(|r| unpacked[r].q);
            let scale = std::array::from_fn(|r| unpacked[r].scale.map(i32::from));
            tiles::<K>(job.act_rows.len(), |t, n| match n {
                1 => super_tile::<K, S, 1>(job, b, &unpacked, &codes, &scale, t, sums),
                _ => super_tile::<K, S, 4>(job, b, &unpacked, &codes, &scale, t, sums),
            });
        }
    });
}

fn super_tile<K: Kernel, S: SuperType, const T: usize>(
    job: &Job,
    b: usize,
    unpacked: &[Super; ROWS],
    codes: &[[i8; 256]; ROWS],
    scale: &[[i32; 16]; ROWS],
    t: usize,
    sums: &mut [[f32; ROWS]],
) {
    let acts: [Block; T] =
        std::array::from_fn(|i| Block(&job.activation(t + i)[b * BLOCK_BYTES..][..BLOCK_BYTES]));
    // SAFETY: the path of this kernel is available.
    let dots = unsafe { K::dots::<256, T>(codes, scale, &acts.map(Block::values)) };
    for (i, a) in acts.iter().enumerate() {
        for (r, w) in unpacked.iter().enumerate() {
            let sum = &mut sums[t + i][r];
            *sum = (w.d * a.scale(0)).mul_add(dots[i][r] as f32, *sum);
            if S::HAS_MIN {
                let mins: i32 = (0..16).map(|j| i32::from(w.min[j]) * a.sum(j)).sum();
                *sum = (-(w.dmin * a.scale(0))).mul_add(mins as f32, *sum);
            }
        }
    }
}

fn matmul_small<K: Kernel, M: SmallType>(job: &Job, out: &mut [f32]) {
    let mut unpacked = [Small::ZERO; ROWS];
    quads(job, out, |rows, sums| {
        for piece in 0..rows[0].len() / M::BYTES * M::PIECES {
            for (row, w) in rows.iter().zip(&mut unpacked) {
                M::unpack(
                    &row[piece / M::PIECES * M::BYTES..][..M::BYTES],
                    piece % M::PIECES,
                    w,
                );
            }
            let codes = std::array::from_fn(|r| unpacked[r].q);
            tiles::<K>(job.act_rows.len(), |t, n| match n {
                1 => small_tile::<K, M, 1>(job, piece, &unpacked, &codes, t, sums),
                _ => small_tile::<K, M, 4>(job, piece, &unpacked, &codes, t, sums),
            });
        }
    });
}

fn small_tile<K: Kernel, M: SmallType, const T: usize>(
    job: &Job,
    piece: usize,
    unpacked: &[Small; ROWS],
    codes: &[[i8; 32]; ROWS],
    t: usize,
    sums: &mut [[f32; ROWS]],
) {
    let (b, j) = (piece / 8, piece % 8);
    let acts: [Block; T] =
        std::array::from_fn(|i| Block(&job.activation(t + i)[b * BLOCK_BYTES..][..BLOCK_BYTES]));
    // SAFETY: the path of this kernel is available.
    let dots = unsafe {
        K::dots::<32, T>(
            codes,
            &[[1; 16]; ROWS],
            &acts.map(|a| &a.values()[32 * j..32 * j + 32]),
        )
    };
    for (i, a) in acts.iter().enumerate() {
        let total = (a.sum(2 * j) + a.sum(2 * j + 1)) as f32;
        for (r, w) in unpacked.iter().enumerate() {
            let sum = &mut sums[t + i][r];
            *sum = (w.d * a.scale(j)).mul_add(dots[i][r] as f32, *sum);
            if M::HAS_MIN {
                *sum = w.m.mul_add(a.scale(j) * total, *sum);
            }
        }
    }
}
