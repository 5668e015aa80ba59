//! Many activation rows: panels of weights, unpacked once for all of them, times tiles of activations.
//!
//! What is computed for an element is the same as in [`super::dot`] to the bit: integers are exact whatever their
//! order, floats are taken block after block.

pub(super) mod avx2;
pub(super) mod avx512;
pub(super) mod avxvnni;
pub(super) mod ymm;

use super::panel::PanelActs;

/// Activation rows that are packed and multiplied at a time, at most.
const CHUNK: usize = 256;
/// Bytes that they take, at most: with a panel of weights they stay in the second cache.
const CHUNK_BYTES: usize = 1 << 20;
/// A multiple of what fits tiles.
const CHUNK_STEP: usize = 8;

/// Of `n` activation rows of `n_blocks` blocks, how many at a time.
fn chunk(n: usize, n_blocks: usize) -> usize {
    let most = CHUNK_BYTES / (n_blocks.max(1) * size_of::<PanelActs>());
    let most = (most / CHUNK_STEP * CHUNK_STEP).clamp(CHUNK_STEP, CHUNK);
    // As equal as possible, so that none is small.
    let chunks = n.div_ceil(most).max(1);
    n.div_ceil(chunks).next_multiple_of(CHUNK_STEP).min(most)
}

/// Memory that calls reuse.
#[derive(Default)]
pub(crate) struct Buffers {
    /// By block of 256, then by activation.
    acts: Vec<PanelActs>,
}

/// Define the two drivers of an instruction set: `$lanes` says how to work with vectors of its `NR` rows.
macro_rules! drivers {
    ($features:literal, $lanes:ident, $nr:literal, [$($n:literal),*]) => {
        const NR: usize = $nr;

        /// Sums by activation from `t` on into the output.
        fn put_sums(job: &Job, first: usize, t: usize, sums: &[[f32; NR]], out: &mut [f32]) {
            let n_rows = job.rows.len();
            let keep = NR.min(n_rows - first);
            for (i, sum) in sums.iter().enumerate() {
                let out = &mut out[(t + i) * n_rows + first..][..keep];
                // A copy of known length is no call.
                match out.as_chunks_mut::<NR>().0 {
                    [whole] => *whole = *sum,
                    _ => out.copy_from_slice(&sum[..keep]),
                }
            }
        }

        /// Ask for block `b`, of `bytes`, of the panel of rows from the job's row `first` on: a processor does not see
        /// by itself that so many rows are read side by side.
        #[inline]
        fn ask_for(rows: &[&[u8]; NR], b: usize, bytes: usize) {
            for row in rows {
                for at in (b * bytes..(b + 1) * bytes).step_by(64) {
                    prefetch(row, at);
                }
            }
        }

        /// Types with blocks of 256: all rows of the job with all its activations.
        #[target_feature(enable = $features)]
        pub(crate) fn matmul_super<S: SuperAvx2>(job: &Job, out: &mut [f32], buffers: &mut Buffers) {
            let moved = $lanes::moved::<SuperCodes<S>>();
            // Nothing asks how loud activations are where sums fit in any case.
            let loud = $lanes::wraps::<SuperCodes<S>>() && !$lanes::sure::<SuperCodes<S>>();
            let run = loud.then_some($lanes::longest::<SuperCodes<S>>());
            let n_blocks = job.weights.n_in() / 256;
            let mut panel = SuperPanel::<NR>::ZERO;
            let mut sums = [[0f32; NR]; CHUNK];
            let chunk = chunk(job.act_rows.len(), n_blocks);
            for t in (0..job.act_rows.len()).step_by(chunk) {
                let n = chunk.min(job.act_rows.len() - t);
                buffers.acts.resize(n_blocks * n, PanelActs::ZERO);
                for i in 0..n {
                    let row = job.activation(t + i);
                    for b in 0..n_blocks {
                        buffers.acts[b * n + i].fill_super(part(row, b * BLOCK_BYTES), moved, S::SUB, run);
                    }
                }
                for first in (0..job.rows.len()).step_by(NR) {
                    let rows = job.weight_rows::<NR>(first);
                    let next = job.weight_rows::<NR>(first + NR);
                    sums[..n].fill([0.0; NR]);
                    for b in 0..n_blocks {
                        ask_for(&next, b, S::BYTES);
                        let apart = const { $lanes::apart::<SuperCodes<S>>() };
                        panel.fill::<S>(&rows, b, $lanes::WIDE, apart);
                        if const { $lanes::wraps::<SuperCodes<S>>() } {
                            $lanes::fill_start::<SuperCodes<S>>(&panel.codes, &mut panel.start);
                        }
                        let acts = &buffers.acts[b * n..][..n];
                        super_block::<S>(&panel, acts, &mut sums[..n]);
                    }
                    put_sums(job, first, t, &sums[..n], out);
                }
            }
        }

        /// A panel times its block of the activations, added to their sums.
        #[target_feature(enable = $features)]
        fn super_block<S: SuperAvx2>(
            panel: &SuperPanel<NR>,
            acts: &[PanelActs],
            sums: &mut [[f32; NR]],
        ) {
            let max = <SuperCodes<S> as Codes>::MAX;
            let wraps = const { $lanes::wraps::<SuperCodes<S>>() };
            let sure = const { $lanes::sure::<SuperCodes<S>>() };
            let mut start = $lanes::zero();
            if const { $lanes::exceeds::<SuperCodes<S>>() } {
                let taken = $lanes::excess::<SuperCodes<S>>(&panel.codes, &panel.signs, &panel.scale);
                start = $lanes::sub(start, taken);
            }
            let mut at = 0;
            $(
                while acts.len() - at >= $n {
                    let tile: &[PanelActs; $n] = acts[at..at + $n].try_into().expect("this many");
                    let sums = (&mut sums[at..at + $n]).try_into().expect("this many");
                    if wraps && (sure || tile.iter().all(|a| a.is_quiet(max))) {
                        super_tile::<S, $n, true>(panel, tile, sums, start);
                    } else {
                        super_tile::<S, $n, false>(panel, tile, sums, start);
                    }
                    at += $n;
                }
            )*
        }

        /// Integer dot products, scaled by sub-block; `QUIET` if all activations are.
        #[inline]
        #[target_feature(enable = $features)]
        fn super_dots<S: SuperAvx2, const T: usize, const QUIET: bool>(
            panel: &SuperPanel<NR>,
            acts: &[PanelActs; T],
            start: $lanes::Int,
        ) -> [$lanes::Int; T] {
            let mut dots = [start; T];
            let steps = <SuperCodes<S> as Codes>::STEPS;
            for sub in 0..STEPS / steps {
                let scale = $lanes::load(&panel.scale[sub]);
                if const { $lanes::apart::<SuperCodes<S>>() } {
                    $lanes::multiply_apart::<SuperCodes<S>, T>(
                        &panel.codes, &panel.signs, acts, sub * steps, scale, &mut dots,
                    );
                } else if const { $lanes::wraps::<SuperCodes<S>>() } {
                    $lanes::multiply_wrapping::<SuperCodes<S>, T, QUIET>(
                        &panel.codes, &panel.start, acts, sub * steps, scale, &mut dots,
                    );
                } else {
                    $lanes::multiply::<SuperCodes<S>, T>(&panel.codes, acts, sub * steps, scale, &mut dots);
                }
            }
            dots
        }

        #[inline]
        #[target_feature(enable = $features)]
        fn super_tile<S: SuperAvx2, const T: usize, const QUIET: bool>(
            panel: &SuperPanel<NR>,
            acts: &[PanelActs; T],
            sums: &mut [[f32; NR]; T],
            start: $lanes::Int,
        ) {
            let dots = super_dots::<S, T, QUIET>(panel, acts, start);
            let d = $lanes::load_float(&panel.d);
            for i in 0..T {
                let scale = f32::from_bits(acts[i].b[0] as u32);
                let sum = $lanes::load_float(&sums[i]);
                let sum = $lanes::add_scaled(d, scale, dots[i], sum);
                $lanes::store_float(&mut sums[i], sum);
            }
            if S::HAS_MIN {
                let mut mins = [$lanes::zero(); T];
                for k in 0..if S::SUB == 16 { 8 } else { 4 } {
                    let min = $lanes::load(&panel.min[k]);
                    for i in 0..T {
                        mins[i] = $lanes::add_pairs(mins[i], min, acts[i].a[k]);
                    }
                }
                let dmin = $lanes::load_float(&panel.dmin);
                for i in 0..T {
                    let scale = f32::from_bits(acts[i].b[0] as u32);
                    let sum = $lanes::load_float(&sums[i]);
                    // The product is the negative of dmin times scale, exactly.
                    let sum = $lanes::add_scaled(dmin, -scale, mins[i], sum);
                    $lanes::store_float(&mut sums[i], sum);
                }
            }
        }

        /// Types with float scales: all rows of the job with all its activations.
        #[target_feature(enable = $features)]
        pub(crate) fn matmul_small<M: SmallAvx2>(job: &Job, out: &mut [f32], buffers: &mut Buffers) {
            let moved = $lanes::moved::<SmallCodes<M>>();
            let n_pieces = job.weights.n_in() / 32;
            let n_blocks = n_pieces.div_ceil(8);
            let mut panel = SmallPanel::<NR>::ZERO;
            let mut sums = [[0f32; NR]; CHUNK];
            let chunk = chunk(job.act_rows.len(), n_blocks);
            for t in (0..job.act_rows.len()).step_by(chunk) {
                let n = chunk.min(job.act_rows.len() - t);
                buffers.acts.resize(n_blocks * n, PanelActs::ZERO);
                for i in 0..n {
                    let row = job.activation(t + i);
                    for b in 0..n_blocks {
                        buffers.acts[b * n + i].fill_small(part(row, b * BLOCK_BYTES), moved);
                    }
                }
                for first in (0..job.rows.len()).step_by(NR) {
                    let rows = job.weight_rows::<NR>(first);
                    let next = job.weight_rows::<NR>(first + NR);
                    sums[..n].fill([0.0; NR]);
                    for b in 0..n_blocks {
                        let pieces = (n_pieces - 8 * b).min(8);
                        ask_for(&next, b, 8 / M::PIECES * M::BYTES);
                        panel.fill::<M>(&rows, b, pieces);
                        let acts = &buffers.acts[b * n..][..n];
                        small_block::<M>(&panel, pieces, acts, &mut sums[..n], moved);
                    }
                    put_sums(job, first, t, &sums[..n], out);
                }
            }
        }

        /// A panel of `pieces` times 32 weights times its block of the activations, added to their sums.
        #[target_feature(enable = $features)]
        fn small_block<M: SmallAvx2>(
            panel: &SmallPanel<NR>,
            pieces: usize,
            acts: &[PanelActs],
            sums: &mut [[f32; NR]],
            moved: bool,
        ) {
            let mut start = [$lanes::zero(); 8];
            if moved {
                for (j, start) in start.iter_mut().enumerate() {
                    let mut taken = [$lanes::zero()];
                    let moved = &[PanelActs::MOVED];
                    $lanes::multiply::<SmallCodes<M>, 1>(&panel.codes, moved, 8 * j, $lanes::one(), &mut taken);
                    *start = $lanes::sub(*start, taken[0]);
                }
            }
            let mut at = 0;
            $(
                while acts.len() - at >= $n {
                    small_tile::<M, $n>(
                        panel,
                        pieces,
                        acts[at..at + $n].try_into().expect("this many"),
                        (&mut sums[at..at + $n]).try_into().expect("this many"),
                        &start,
                    );
                    at += $n;
                }
            )*
        }

        #[inline]
        #[target_feature(enable = $features)]
        fn small_tile<M: SmallAvx2, const T: usize>(
            panel: &SmallPanel<NR>,
            pieces: usize,
            acts: &[PanelActs; T],
            sums: &mut [[f32; NR]; T],
            start: &[$lanes::Int; 8],
        ) {
            for j in 0..pieces {
                let mut dots = [start[j]; T];
                $lanes::multiply::<SmallCodes<M>, T>(&panel.codes, acts, 8 * j, $lanes::one(), &mut dots);
                let d = $lanes::load_float(&panel.d[j]);
                let m = $lanes::load_float(&panel.m[j]);
                for i in 0..T {
                    let scale = f32::from_bits(acts[i].a[j] as u32);
                    let mut sum = $lanes::load_float(&sums[i]);
                    sum = $lanes::add_scaled(d, scale, dots[i], sum);
                    if M::HAS_MIN {
                        sum = $lanes::add_product(m, f32::from_bits(acts[i].b[j] as u32), sum);
                    }
                    $lanes::store_float(&mut sums[i], sum);
                }
            }
        }
    };
}
use drivers;

/// What the drivers ask of an instruction set whose products need neither sums that wrap around nor magnitudes apart from
/// signs: they are of int32, and signed codes are multiplied with activations moved up.
macro_rules! only_multiply {
    ($features:literal) => {
        pub const fn wraps<C: Codes>() -> bool {
            false
        }

        /// Not called, as [`wraps`] says.
        pub fn fill_start<C: Codes>(_: &[[i32; NR]; STEPS], _: &mut [[[i32; NR]; 2]; STEPS / RUN]) {
        }

        /// Nothing asks, as [`wraps`] says.
        pub const fn longest<C: Codes>() -> usize {
            RUN
        }

        /// Nothing asks, as [`wraps`] says.
        pub const fn sure<C: Codes>() -> bool {
            false
        }

        /// As [`multiply`].
        #[inline]
        #[target_feature(enable = $features)]
        pub fn multiply_wrapping<C: Codes, const T: usize, const QUIET: bool>(
            codes: &[[i32; NR]; STEPS],
            _: &[[[i32; NR]; 2]; STEPS / RUN],
            acts: &[PanelActs; T],
            at: usize,
            scale: Int,
            dots: &mut [Int; T],
        ) {
            multiply::<C, T>(codes, acts, at, scale, dots);
        }

        pub const fn apart<C: Codes>() -> bool {
            false
        }

        /// Whether the scaled products of a panel have an [`excess`].
        pub const fn exceeds<C: Codes>() -> bool {
            moved::<C>()
        }

        /// What activations moved up by 128 add to the scaled products of a panel.
        #[inline]
        #[target_feature(enable = $features)]
        pub fn excess<C: Codes>(
            codes: &[[i32; NR]; STEPS],
            _: &[[i32; NR]; STEPS],
            scale: &[[i32; NR]; 16],
        ) -> Int {
            let mut excess = [zero()];
            for sub in 0..STEPS / C::STEPS {
                let scale = load(&scale[sub]);
                multiply::<C, 1>(
                    codes,
                    &[PanelActs::MOVED],
                    sub * C::STEPS,
                    scale,
                    &mut excess,
                );
            }
            excess[0]
        }

        /// As [`multiply`].
        #[inline]
        #[target_feature(enable = $features)]
        pub fn multiply_apart<C: Codes, const T: usize>(
            codes: &[[i32; NR]; STEPS],
            _: &[[i32; NR]; STEPS],
            acts: &[PanelActs; T],
            at: usize,
            scale: Int,
            dots: &mut [Int; T],
        ) {
            multiply::<C, T>(codes, acts, at, scale, dots);
        }
    };
}
use only_multiply;
