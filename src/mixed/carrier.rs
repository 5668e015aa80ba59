//! Carriers: the types under which mixed tensors stand in a file.
//!
//! A carrier only says how many bytes a tensor has; nothing is ever stored in it. It must be a type that llama.cpp's
//! loader has known for long, so that a mixed file does not need a newer llama.cpp than its plain form does.
//!
//! On x86 and ARM llama.cpp repacks some types for speed when it loads them (`ggml/src/ggml-cpu/repack.cpp`). A mixed tensor
//! never gets there: buffer types of accelerator devices, the plugin's, are asked before those of the CPU. GPU
//! devices are asked before both, which is why `moqa run` keeps experts on the CPU.

use crate::gguf::{GgmlType, Shape};

/// Whether a tensor may stand under this type: llama.cpp of October 2026 and a year before takes it for weights.
fn is_carrier(ty: GgmlType) -> bool {
    use GgmlType::*;
    match ty {
        F32 | F16 | BF16 => true,
        // Types of activations, and those that are new.
        Q8_1 | Q8_K | NVFP4 | Q1_0 | Q2_0 => false,
        _ => ty.is_quantized(),
    }
}

/// Types in which a tensor of this shape can be a carrier, with its bytes in them, from the smallest on, one of
/// each size. The container's header and the experts with their padding must find room.
pub fn carriers(shape: &Shape) -> Vec<(GgmlType, u64)> {
    let mut all: Vec<(GgmlType, u64)> = GgmlType::ALL
        .iter()
        .filter(|ty| is_carrier(**ty))
        .filter_map(|ty| Some((*ty, shape.n_bytes(*ty).ok()?)))
        .collect();
    all.sort_by_key(|(ty, bytes)| (*bytes, is_repacked(*ty), ty.id()));
    all.dedup_by_key(|c| c.1);
    all
}

/// The smallest carrier with room for `needed` bytes.
pub fn carrier(shape: &Shape, needed: u64) -> Option<GgmlType> {
    let all = carriers(shape);
    all.iter().find(|c| c.1 >= needed).map(|c| c.0)
}

/// Among types of one size, those that llama.cpp does not repack come first.
fn is_repacked(ty: GgmlType) -> bool {
    use GgmlType::*;
    matches!(ty, Q4_0 | Q8_0 | Q2_K | Q4_K | Q5_K | Q6_K | IQ4_NL | MXFP4)
}

#[cfg(test)]
mod tests {
    use super::*;
    use GgmlType::*;

    #[test]
    fn the_smallest_type_with_room_is_taken() {
        let shape = Shape::new(&[256, 4, 16]).unwrap();
        let bytes = |ty| shape.n_bytes(ty).unwrap();
        assert_eq!(carrier(&shape, bytes(Q2_K)), Some(Q2_K));
        assert_eq!(carrier(&shape, bytes(Q2_K) + 1), Some(IQ3_XXS));
        assert_eq!(carrier(&shape, bytes(IQ3_S)), Some(Q3_K));
        assert_eq!(carrier(&shape, bytes(MXFP4)), Some(IQ4_XS));
        assert_eq!(carrier(&shape, bytes(Q4_K) + 1), Some(Q4_1));
        assert_eq!(carrier(&shape, bytes(F32)), Some(F32));
        assert_eq!(carrier(&shape, bytes(F32) + 1), None);
        let all = carriers(&shape);
        assert!(all.windows(2).all(|w| w[0].1 < w[1].1));
        assert!(
            all.iter()
                .all(|c| !matches!(c.0, Q8_1 | Q8_K | NVFP4 | Q1_0 | Q2_0 | I8))
        );
        assert_eq!(all[0].0, IQ1_S);
    }

    #[test]
    fn rows_must_hold_whole_blocks() {
        let shape = Shape::new(&[96, 4, 2]).unwrap();
        assert_eq!(carriers(&shape)[0].0, MXFP4);
        assert!(carriers(&shape).iter().all(|c| c.0.block_elems() <= 32));
        let odd = Shape::new(&[5, 4, 2]).unwrap();
        assert_eq!(carrier(&odd, 1), Some(F16));
        let huge = Shape::new(&[1 << 40, 1 << 40, 2]).unwrap();
        assert_eq!(carrier(&huge, 1), None);
    }
}
