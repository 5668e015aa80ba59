//! Rows brought into their type's unpacked form.

use crate::{
    Error, Isa, Type,
    blocks::{Unpackable, unpackable},
    error::at_least,
};

/// A row of weights into the first [`Type::unpacked_row_bytes`] bytes of `out`: the form of types with tables whose
/// entries are looked up once here, and not with every product. It takes 1.2 to 1.6 times the bytes; products with it
/// ([`crate::Weights::unpacked`]) are the same, bit for bit.
///
/// # Errors
/// The type has no such form, `row` is not a whole number of blocks, `out` is too short, or the processor lacks `isa`.
pub fn unpack_row(isa: Isa, ty: Type, row: &[u8], out: &mut [u8]) -> Result<(), Error> {
    if !isa.is_available() {
        return Err(Error::Isa(isa));
    }
    let n_in = row.len() / ty.block_bytes() * ty.block_elems();
    let needed = ty
        .unpacked_row_bytes(n_in)
        .filter(|_| row.len().is_multiple_of(ty.block_bytes()))
        .ok_or(Error::RowLength { ty, n_in })?;
    at_least("unpacked row", out.len(), Some(needed))?;
    let blocks = row.chunks_exact(ty.block_bytes());
    let each = ty.unpacked_block_bytes().unwrap_or(needed).max(1);
    for (block, out) in blocks.zip(out[..needed].chunks_exact_mut(each)) {
        #[cfg(target_arch = "x86_64")]
        if isa != Isa::Scalar {
            crate::x86::unpack_block(ty, block, out);
            continue;
        }
        unpackable!(ty,
            numbered S => S::unpack_block(block, out),
            other S => S::unpack_block(block, out),
            _ => {});
    }
    Ok(())
}
