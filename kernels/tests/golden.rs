//! Rows that ggml quantized, and random bytes, against the floats and dot products that ggml gave for them.

use moqa_kernels::{Isa, Scratch, Type, Weights, dequantize_row, matmul};

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn bytes(&mut self, n: usize) -> &'a [u8] {
        let (head, tail) = self.0.split_at(n);
        self.0 = tail;
        head
    }
    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.bytes(4).try_into().unwrap())
    }
    fn floats(&mut self, n: usize) -> Vec<f32> {
        self.bytes(4 * n)
            .chunks_exact(4)
            .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
            .collect()
    }
}

#[test]
fn agrees_with_ggml() {
    let mut reader = Reader(include_bytes!("golden.bin"));
    let n = reader.u32() as usize;
    let activations = reader.floats(n);
    let (mut rows, mut dots) = (0, 0);
    while !reader.0.is_empty() {
        let ty = Type::from_id(reader.u32()).unwrap();
        let n = reader.u32() as usize;
        let n_bytes = reader.u32() as usize;
        let has_dot = reader.u32() == 1;
        let row = reader.bytes(n_bytes);
        let expected = reader.floats(n);
        assert_eq!(ty.row_bytes(n), Some(n_bytes), "{ty:?}");

        let mut floats = vec![0f32; n];
        dequantize_row(ty, row, &mut floats).unwrap();
        for (i, (x, y)) in floats.iter().zip(&expected).enumerate() {
            let same = x.to_bits() == y.to_bits() || x.is_nan() && y.is_nan();
            assert!(same, "{ty:?} weight {i}: {x} here, {y} in ggml");
        }
        rows += 1;

        if has_dot {
            let theirs = reader.floats(1)[0];
            let norm = |x: &[f32]| x.iter().map(|x| x * x).sum::<f32>().sqrt();
            let size = norm(&floats) * norm(&activations);
            let weights = Weights::new(ty, row, n_bytes, 1, n).unwrap();
            let form = ty.activation();
            for isa in Isa::available() {
                let mut acts = vec![0; form.row_bytes(n)];
                form.quantize_row(isa, &activations, &mut acts).unwrap();
                let mut ours = [0f32];
                matmul(
                    isa,
                    &weights,
                    0..1,
                    &acts,
                    &[0],
                    &mut ours,
                    &mut Scratch::new(),
                )
                .unwrap();
                // Both round the activations; ggml rounds their scales to halves in some formats.
                let error = (ours[0] - theirs).abs() / size;
                assert!(
                    error < 2e-4,
                    "{ty:?} {isa:?}: {} here, {theirs} in ggml, size {size}",
                    ours[0]
                );
            }
            dots += 1;
        }
    }
    assert_eq!((rows, dots), (2 * Type::ALL.len(), Type::ALL.len()));
}
