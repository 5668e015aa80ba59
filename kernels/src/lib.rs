//! Matrix multiplications with ggml's quantized weights on CPUs, without ggml.
//!
//! ```
//! use moqa_kernels::{Isa, Scratch, Type, Weights, matmul};
//! let isa = Isa::detect();
//! let (n_in, n_rows) = (64, 3);
//! let data = vec![0u8; n_rows * Type::Q8_0.row_bytes(n_in).unwrap()];
//! let weights = Weights::new(Type::Q8_0, &data, data.len() / n_rows, n_rows, n_in)?;
//! let form = weights.ty().activation();
//! let mut acts = vec![0; form.row_bytes(n_in)];
//! form.quantize_row(isa, &[1.0; 64], &mut acts)?;
//! let mut out = [0f32; 3];
//! matmul(isa, &weights, 0..n_rows, &acts, &[0], &mut out, &mut Scratch::new())?;
//! # Ok::<(), moqa_kernels::Error>(())
//! ```

// Kernels index several arrays with one variable; the ranges say what is meant better than zips would.
#![allow(clippy::needless_range_loop)]

#[cfg(target_arch = "aarch64")]
mod aarch64;
mod activation;
mod blocks;
mod error;
mod f16;
mod isa;
mod matmul;
mod reference;
mod tables;
mod types;
mod unpack;
mod weights;
#[cfg(target_arch = "x86_64")]
mod x86;

pub use activation::Activation;
pub use error::Error;
pub use isa::Isa;
pub use matmul::{Scratch, matmul};
pub use reference::dequantize_row;
pub use types::Type;
pub use unpack::unpack_row;
pub use weights::Weights;

/// How entries of tables come into vectors on x86; the fastest is found out.
#[doc(hidden)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lookup {
    /// Read one by one, put into memory and read from there as a vector: on some processors one port has to do all that is
    /// done in registers.
    Store = 1,
    /// Read one by one and inserted.
    Insert = 2,
    /// `vpgather`.
    Gather = 3,
}

/// Has entries of tables looked up so, whatever is fastest; for tests.
#[doc(hidden)]
pub fn choose_lookup(way: Lookup) {
    #[cfg(target_arch = "x86_64")]
    x86::choose(way);
    #[cfg(not(target_arch = "x86_64"))]
    let _ = way;
}
