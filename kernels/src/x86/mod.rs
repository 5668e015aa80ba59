//! Kernels for x86-64. Callers have checked that the processor has the instructions.

mod apart;
mod dot;
mod float;
mod gemm;
mod lanes;
mod lookup;
mod panel;
mod product;
mod quantize;
mod together;
mod unpack_small;
mod unpack_super;
mod unpacked;

pub(crate) use gemm::Buffers;
pub(crate) use lookup::choose;

use crate::{
    Isa, Type,
    blocks::{Unpackable, by_type, unpackable},
    matmul::Job,
};
use unpack_super::SuperAvx2;

/// Of types with float scales, from more activation rows on unpacking panels pays.
const FEW: usize = 4;

/// Do the job, if `isa` has code for its type; otherwise nothing.
pub(crate) fn matmul(isa: Isa, job: &Job, out: &mut [f32], buffers: &mut Buffers) -> bool {
    if isa == Isa::Scalar {
        return false;
    }
    let n = job.act_rows.len();
    // SAFETY: every path but the scalar one implies AVX2, FMA and F16C; the others are taken by their own isa;
    // and `isa` is available.
    by_type!(job.weights.ty(), job.weights.is_unpacked(),
    super S => unsafe {
        match isa {
            _ if n <= S::FEW => dot::matmul_super::<S>(job, out),
            Isa::Avx512Vnni => gemm::avx512::matmul_super::<S>(job, out, buffers),
            Isa::AvxVnni => gemm::avxvnni::matmul_super::<S>(job, out, buffers),
            _ => gemm::avx2::matmul_super::<S>(job, out, buffers),
        }
    },
    small M => unsafe {
        match isa {
            _ if n <= FEW => dot::matmul_small::<M>(job, out),
            Isa::Avx512Vnni => gemm::avx512::matmul_small::<M>(job, out, buffers),
            Isa::AvxVnni => gemm::avxvnni::matmul_small::<M>(job, out, buffers),
            _ => gemm::avx2::matmul_small::<M>(job, out, buffers),
        }
    },
    float => unsafe {
        match job.weights.ty() {
            Type::F16 => float::matmul::<float::F16>(job, out),
            Type::BF16 => float::matmul::<float::BF16>(job, out),
            _ => float::matmul::<float::F32>(job, out),
        }
    });
    true
}

/// 256 activations into a block, `group` of them with a scale; `isa` has been checked and is not the scalar one.
pub(crate) fn quantize_block(values: &[f32], group: usize, block: &mut [u8]) {
    let values = values.try_into().expect("256 activations");
    // SAFETY: every path but the scalar one implies AVX2, FMA and F16C.
    unsafe { quantize::quantize_block(values, group, block) }
}

/// A block into its type's unpacked form; the path has been checked and is not the scalar one.
pub(crate) fn unpack_block(ty: Type, block: &[u8], out: &mut [u8]) {
    unpackable!(ty,
        // SAFETY: every path but the scalar one implies AVX2, FMA and F16C.
        numbered S => unsafe { unpacked::unpack_block::<S>(block, out) },
        other S => S::unpack_block(block, out),
        _ => {});
}
