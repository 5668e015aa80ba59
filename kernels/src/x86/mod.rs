//! Kernels for x86-64. Callers have checked that the processor has the instructions.

mod dot;
mod lanes;
mod unpack_small;
mod unpack_super;

use crate::{
    Isa,
    blocks::by_type,
    matmul::{Job, Scratch},
};

/// Do the job, if `isa` has code for its type; otherwise nothing.
pub(crate) fn matmul(isa: Isa, job: &Job, out: &mut [f32], _scratch: &mut Scratch) -> bool {
    if isa == Isa::Scalar {
        return false;
    }
    by_type!(job.weights.ty(),
        // SAFETY: every path but the scalar one implies AVX2, FMA and F16C, and it is available.
        super S => unsafe { dot::matmul_super::<S>(job, out) },
        // SAFETY: as above.
        small M => unsafe { dot::matmul_small::<M>(job, out) },
        float => return false);
    true
}
