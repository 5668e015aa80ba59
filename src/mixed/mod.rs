//! Mixed files: GGUF models whose merged expert tensors hold experts of different types.
//!
//! A GGUF tensor has one type. A mixed tensor keeps shape and name, its type is a *carrier*, a type in which it has
//! bytes enough, and its bytes are a container (crate `moqa-mixed`) of experts each in a type of its own. Only
//! moqa's plugin reads that, so a mixed file carries a guard: its `general.architecture` begins with
//! [`GUARD`], which llama.cpp refuses. `docs/mixed-container.md` describes the whole.

pub mod carrier;
mod plain;
mod read;
mod stand_in;
mod write;

pub use plain::plain;
pub use read::{MixedTensor, mixed_tensors};
pub use stand_in::{StandIn, open_architecture};
pub use write::{Mixture, guard_metadata};

use anyhow::{Result, bail};

use crate::gguf::{GgmlType, Gguf, Metadata, Shape, TensorInfo};
use crate::model::Role;

/// What the architecture of a mixed file begins with.
pub const GUARD: &str = "moqa-";
/// The names of the mixed tensors, an array of strings.
pub const KEY_TENSORS: &str = "moqa.mixed";
const KEY_ARCHITECTURE: &str = "general.architecture";

/// The architecture without the guard: what other keys begin with.
pub fn base_architecture(arch: &str) -> &str {
    arch.strip_prefix(GUARD).unwrap_or(arch)
}

/// Whether metadata are those of a mixed file.
pub fn is_guarded(metadata: &Metadata) -> bool {
    let arch = metadata.get_str(KEY_ARCHITECTURE);
    arch.is_some_and(|a| a.starts_with(GUARD))
}

/// Refuses a mixed file where a stock model is needed.
///
/// # Errors
/// It is one; says what can be done, and leaves the file's name to the caller.
pub fn refuse(gguf: &Gguf) -> Result<()> {
    if is_guarded(&gguf.metadata) {
        bail!(
            "this is a mixed file, whose experts have types of their own; llama.cpp runs it with `moqa run`, and `moqa unpack` makes a stock model of it"
        );
    }
    Ok(())
}

/// Blocks of a type in which experts can be stored.
pub(crate) fn block(id: u32) -> Option<moqa_mixed::Block> {
    let ty = GgmlType::from_id(id).filter(|ty| crate::ggml::can_decode(*ty))?;
    Some(moqa_mixed::Block {
        elems: ty.block_elems(),
        bytes: ty.block_bytes(),
    })
}

/// `[n_in, n_out, n_expert]` of a tensor.
pub(crate) fn shape(dims: &Shape) -> moqa_mixed::Shape {
    moqa_mixed::Shape {
        n_in: dims.ne(0),
        n_out: dims.ne(1),
        n_expert: dims.ne(2),
    }
}

/// Whether the matrices of a tensor may have types of their own: they are routed experts, under a name by which the
/// plugin knows these (its `is_expert_weight`). Others would be read as what their carrier says.
pub fn can_mix(tensor: &TensorInfo) -> bool {
    tensor.ne(2) > 1
        && tensor.ne(3) == 1
        && tensor.name.ends_with("exps.weight")
        && Role::of_name(&tensor.name).is_expert()
}
