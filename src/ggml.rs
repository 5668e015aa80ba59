//! ggml's quantizers and dequantizers on row blocks.
//!
//! ggml checks little and aborts the process on values it does not expect, so everything it could stumble
//! over is checked here first.

use anyhow::{Result, bail, ensure};
use llama_cpp_sys_2 as sys;

use crate::gguf::GgmlType;

/// Largest magnitude of a weight that is passed to a quantizer. ggml stores scales as float16 and sums
/// squares in float32; far smaller values already overflow those.
const MAX_MAGNITUDE: f32 = 1e6;

/// Whether ggml's quantizer of this type needs importance data (it aborts without).
pub fn requires_importance(ty: GgmlType) -> bool {
    // SAFETY: a pure function of a valid type id.
    unsafe { sys::ggml_quantize_requires_imatrix(ty.id()) }
}

/// Whether a float row can be encoded in this type: the float types, and those ggml has a quantizer for.
pub fn can_encode(ty: GgmlType) -> bool {
    match ty {
        GgmlType::F32 | GgmlType::F16 | GgmlType::BF16 => true,
        GgmlType::Q8_1 | GgmlType::Q8_K => false,
        // SAFETY: the traits table has an entry for each valid type id.
        _ => {
            ty.is_quantized()
                && unsafe {
                    (*sys::ggml_get_type_traits(ty.id()))
                        .from_float_ref
                        .is_some()
                }
                || matches!(
                    ty,
                    GgmlType::IQ1_S
                        | GgmlType::IQ1_M
                        | GgmlType::IQ2_XXS
                        | GgmlType::IQ2_XS
                        | GgmlType::IQ2_S
                )
        }
    }
}

/// Whether values of this type can be turned into float32.
pub fn can_decode(ty: GgmlType) -> bool {
    match ty {
        GgmlType::F32 | GgmlType::F16 | GgmlType::BF16 => true,
        // SAFETY: the traits table has an entry for each valid type id.
        _ => {
            ty.is_quantized() && unsafe { (*sys::ggml_get_type_traits(ty.id())).to_float.is_some() }
        }
    }
}

/// Decodes `bytes`, whole blocks of type `ty`, into `out`.
///
/// # Errors
/// The type has no decoder, or the lengths do not match.
pub fn decode(ty: GgmlType, bytes: &[u8], out: &mut [f32]) -> Result<()> {
    crate::runtime::init();
    let expected = ty.row_bytes(out.len() as u64);
    ensure!(
        expected == Some(bytes.len() as u64),
        "{} bytes do not hold {} values of type {ty}",
        bytes.len(),
        out.len()
    );
    match ty {
        GgmlType::F32 => {
            for (o, b) in out.iter_mut().zip(bytes.chunks_exact(4)) {
                *o = f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
            }
        }
        GgmlType::BF16 => {
            for (o, b) in out.iter_mut().zip(bytes.chunks_exact(2)) {
                *o = f32::from_bits(u32::from(u16::from_le_bytes([b[0], b[1]])) << 16);
            }
        }
        _ => {
            ensure!(can_decode(ty), "ggml cannot decode type {ty}");
            let mut copy = Vec::new();
            let src = aligned(bytes, &mut copy);
            // SAFETY: source and destination hold exactly out.len() values, a whole number of blocks.
            unsafe {
                if ty == GgmlType::F16 {
                    sys::ggml_fp16_to_fp32_row(
                        src.as_ptr().cast(),
                        out.as_mut_ptr(),
                        out.len() as i64,
                    );
                } else if let Some(f) = (*sys::ggml_get_type_traits(ty.id())).to_float {
                    f(src.as_ptr().cast(), out.as_mut_ptr(), out.len() as i64);
                }
            }
        }
    }
    Ok(())
}

/// Encodes rows of `n_per_row` values into `out`. `importance`, one value an input channel, weighs the
/// squared errors; it must be finite and not negative.
///
/// # Errors
/// A value is not finite or too large, the type needs importance data and there is none, lengths do not
/// match, or ggml's result is not valid.
pub fn encode(
    ty: GgmlType,
    rows: &[f32],
    n_per_row: usize,
    importance: Option<&[f32]>,
    out: &mut [u8],
) -> Result<()> {
    crate::runtime::init();
    ensure!(
        n_per_row > 0 && rows.len().is_multiple_of(n_per_row),
        "rows of {n_per_row} values do not fill {} values",
        rows.len()
    );
    let n_rows = rows.len() / n_per_row;
    let row_bytes = ty.row_bytes(n_per_row as u64).unwrap_or(0) as usize;
    ensure!(
        row_bytes > 0,
        "rows of {n_per_row} values cannot be stored as {ty}, whose blocks hold {}",
        ty.block_elems()
    );
    ensure!(
        row_bytes * n_rows == out.len(),
        "{} bytes do not hold {n_rows} rows of {ty}",
        out.len()
    );
    if let Some(at) = rows
        .iter()
        .position(|v| v.is_nan() || v.abs() > MAX_MAGNITUDE)
    {
        bail!(
            "row {}, column {}: the weight {} cannot be quantized; the source is damaged or overflowed",
            at / n_per_row,
            at % n_per_row,
            rows[at]
        );
    }
    match ty {
        GgmlType::F32 => {
            for (b, v) in out.chunks_exact_mut(4).zip(rows) {
                b.copy_from_slice(&v.to_le_bytes());
            }
            return Ok(());
        }
        GgmlType::BF16 => {
            for (b, v) in out.chunks_exact_mut(2).zip(rows) {
                b.copy_from_slice(&bf16_bits(*v).to_le_bytes());
            }
            return Ok(());
        }
        _ => {}
    }
    ensure!(can_encode(ty), "ggml has no quantizer for type {ty}");
    if let Some(imp) = importance {
        ensure!(
            imp.len() == n_per_row,
            "importance data of {} channels for rows of {n_per_row}",
            imp.len()
        );
        ensure!(
            imp.iter().all(|v| v.is_finite() && *v >= 0.0),
            "importance data is not finite or negative"
        );
    } else if requires_importance(ty) {
        bail!(
            "type {ty} needs importance data, and there is none for this tensor; analyse more text or choose another type"
        );
    }
    // SAFETY: the buffers hold n_rows rows of source and result, importance one row; values are finite; the
    // quantizer's tables are set up by ggml_quantize_chunk itself under a lock.
    let (written, valid) = unsafe {
        let n = sys::ggml_quantize_chunk(
            ty.id(),
            rows.as_ptr(),
            out.as_mut_ptr().cast(),
            0,
            n_rows as i64,
            n_per_row as i64,
            importance.map_or(std::ptr::null(), |i| i.as_ptr()),
        );
        (
            n,
            sys::ggml_validate_row_data(ty.id(), out.as_ptr().cast(), out.len()),
        )
    };
    ensure!(
        written == out.len(),
        "ggml wrote {written} bytes of {ty} instead of {}",
        out.len()
    );
    ensure!(
        valid,
        "ggml's {ty} of these rows is not valid (scales overflow); keep this tensor in a wider type"
    );
    Ok(())
}

/// Whether `bytes` are valid data of type `ty`: scales and float values finite.
pub fn is_valid(ty: GgmlType, bytes: &[u8]) -> bool {
    if !(bytes.len() as u64).is_multiple_of(ty.block_bytes()) {
        return false;
    }
    // ggml reads with the alignment of a block; a mapped tensor has it, an odd slice is copied.
    let mut copy = Vec::new();
    let src = aligned(bytes, &mut copy);
    // SAFETY: the slice is whole blocks of the type.
    unsafe { sys::ggml_validate_row_data(ty.id(), src.as_ptr().cast(), src.len()) }
}

/// `bytes` on an 8-byte boundary: themselves, or a copy in `copy`.
fn aligned<'a>(bytes: &'a [u8], copy: &'a mut Vec<u64>) -> &'a [u8] {
    if (bytes.as_ptr() as usize).is_multiple_of(8) {
        return bytes;
    }
    copy.extend(bytes.chunks(8).map(|c| {
        let mut word = [0u8; 8];
        word[..c.len()].copy_from_slice(c);
        u64::from_ne_bytes(word)
    }));
    // SAFETY: the buffer holds at least bytes.len() initialised bytes.
    unsafe { std::slice::from_raw_parts(copy.as_ptr().cast::<u8>(), bytes.len()) }
}

/// Round to nearest even, as ggml_compute_fp32_to_bf16; NaN stays NaN.
fn bf16_bits(v: f32) -> u16 {
    let bits = v.to_bits();
    if v.is_nan() {
        return ((bits >> 16) | 64) as u16;
    }
    ((bits + (0x7fff + ((bits >> 16) & 1))) >> 16) as u16
}
