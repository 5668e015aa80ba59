//! Multiplying quantized weights by a factor, by way of their blocks' scales.

use anyhow::{Result, ensure};

use crate::ggml;
use crate::gguf::GgmlType;

/// Where the float16 scales (and minimums) of a block stand, bytes from its start. Everything else in a block is
/// relative to them.
fn scales_at(ty: GgmlType) -> Option<&'static [usize]> {
    use GgmlType::*;
    Some(match ty {
        Q4_0 | Q5_0 | Q8_0 | IQ4_NL | IQ2_XXS | IQ2_XS | IQ2_S | IQ3_XXS | IQ3_S | IQ1_S
        | IQ4_XS => &[0],
        Q4_1 | Q5_1 | Q4_K | Q5_K => &[0, 2],
        Q2_K => &[80, 82],
        Q3_K => &[108],
        Q6_K => &[208],
        _ => return None,
    })
}

/// Whether [`rescale`] knows the type.
pub fn can_rescale(ty: GgmlType) -> bool {
    scales_at(ty).is_some() || matches!(ty, GgmlType::F16 | GgmlType::BF16 | GgmlType::F32)
}

/// Multiplies weights by `factor`: `bytes` are whole blocks of a type for which [`can_rescale`] holds. Exact but for
/// the rounding of the scales to float16.
///
/// # Errors
/// The type's scales cannot be multiplied, or the bytes are not whole blocks.
pub fn rescale(ty: GgmlType, bytes: &mut [u8], factor: f32) -> Result<()> {
    let block = ty.block_bytes() as usize;
    ensure!(
        can_rescale(ty) && bytes.len().is_multiple_of(block),
        "{} bytes of {ty} cannot be multiplied by a factor",
        bytes.len()
    );
    if factor == 1.0 {
        return Ok(());
    }
    let (places, stored): (&[usize], GgmlType) = match scales_at(ty) {
        Some(at) => (at, GgmlType::F16),
        None => (&[0], ty),
    };
    let width = stored.block_bytes() as usize;
    let mut scales = Vec::with_capacity(bytes.len() / block * places.len() * width);
    for block in bytes.chunks_exact(block) {
        for &at in places {
            scales.extend_from_slice(&block[at..at + width]);
        }
    }
    let mut values = vec![0f32; scales.len() / width];
    ggml::decode(stored, &scales, &mut values)?;
    for v in &mut values {
        *v *= factor;
    }
    ggml::encode(stored, &values, values.len(), None, &mut scales)?;
    let mut scales = scales.chunks_exact(width);
    for block in bytes.chunks_exact_mut(block) {
        for (&at, scale) in places.iter().zip(&mut scales) {
            block[at..at + width].copy_from_slice(scale);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_is_multiplied_and_nothing_else_changes() {
        let values: Vec<f32> = (0..1024)
            .map(|i: u32| ((i.wrapping_mul(2_654_435_761) >> 8) as f32 / 8_388_608.0 - 1.0) * 0.05)
            .collect();
        let importance = vec![1.0f32; 256];
        let mut known = 0;
        for &ty in GgmlType::ALL {
            if !can_rescale(ty) || !(ggml::can_encode(ty) || ty == GgmlType::F32) {
                continue;
            }
            known += 1;
            let mut bytes = vec![0u8; ty.row_bytes(256).unwrap() as usize * 4];
            ggml::encode(ty, &values, 256, Some(&importance), &mut bytes).unwrap();
            let decode = |bytes: &[u8]| {
                let mut out = vec![0f32; 1024];
                ggml::decode(ty, bytes, &mut out).unwrap();
                out
            };
            let before = decode(&bytes);
            rescale(ty, &mut bytes, 1.125).unwrap();
            let largest = before.iter().fold(0f32, |m, v| m.max(v.abs()));
            for (a, b) in before.iter().zip(decode(&bytes)) {
                assert!((a * 1.125 - b).abs() <= largest * 0.008, "{ty}: {a} {b}");
            }
        }
        assert!(known >= 20, "{known}");
        assert!(rescale(GgmlType::Q4_K, &mut [0; 100], 1.1).is_err());
        assert!(rescale(GgmlType::MXFP4, &mut [0; 17], 1.1).is_err());
    }
}
