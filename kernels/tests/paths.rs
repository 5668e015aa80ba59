//! Every path against the scalar one, on random and on hostile blocks, at every split.

use moqa_kernels::{
    Isa, Lookup, Scratch, Type, Weights, choose_lookup, dequantize_row, matmul, unpack_row,
};

struct Random(u64);

impl Random {
    fn next(&mut self) -> u32 {
        self.0 = self
            .0
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (self.0 >> 32) as u32
    }
    fn below(&mut self, n: usize) -> usize {
        self.next() as usize % n
    }
    fn noise(&mut self) -> f32 {
        (0..12)
            .map(|_| self.next() as f32 / 4294967296.0)
            .sum::<f32>()
            - 6.0
    }
}

/// Where a block keeps halves, so that tests can choose scales that are finite.
fn halves(ty: Type) -> &'static [usize] {
    match ty {
        Type::F32 | Type::F16 | Type::BF16 | Type::MXFP4 | Type::IQ1_M => &[],
        Type::Q4_1 | Type::Q5_1 | Type::Q4_K | Type::Q5_K => &[0, 2],
        Type::Q2_K => &[80, 82],
        Type::Q3_K => &[108],
        Type::Q6_K => &[208],
        Type::TQ1_0 => &[52],
        Type::TQ2_0 => &[64],
        _ => &[0],
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Fill {
    /// Random codes, scales about 0.01.
    Usual,
    /// Random codes, scales of any finite size and sign.
    AnyScale,
    /// All bytes zero.
    Zero,
    /// All bits set but for the scales: the largest codes.
    Ones,
}

fn fill(ty: Type, data: &mut [u8], fill: Fill, random: &mut Random) {
    for block in data.chunks_exact_mut(ty.block_bytes()) {
        match fill {
            Fill::Zero => block.fill(0),
            Fill::Ones => block.fill(255),
            _ => block
                .iter_mut()
                .for_each(|b| *b = (random.next() >> 11) as u8),
        }
        let scale = |random: &mut Random| -> u16 {
            match fill {
                Fill::Zero => 0,
                Fill::AnyScale => (random.below(0x7c00) | random.below(2) << 15) as u16,
                // 2^-7 up to 2^-6
                _ => (0x2000 | random.below(0x400) | random.below(2) << 15) as u16,
            }
        };
        for &at in halves(ty) {
            let half = scale(random);
            block[at..at + 2].copy_from_slice(&half.to_le_bytes());
        }
        match ty {
            Type::MXFP4 if fill != Fill::Zero => {
                block[0] = if fill == Fill::AnyScale {
                    random.below(200) as u8
                } else {
                    120
                };
            }
            Type::IQ1_M => {
                let half = scale(random);
                for i in 0..4 {
                    let at = 49 + 2 * i;
                    block[at] = block[at] & 15 | ((half >> (4 * i) & 15) as u8) << 4;
                }
            }
            Type::F32 => block.copy_from_slice(&random.noise().to_le_bytes()),
            Type::BF16 => block.copy_from_slice(&random.noise().to_le_bytes()[2..]),
            Type::F16 => block.copy_from_slice(&scale(random).to_le_bytes()),
            _ => {}
        }
    }
}

struct Case {
    ty: Type,
    data: Vec<u8>,
    offset: usize,
    row_bytes: usize,
    n_rows: usize,
    n_in: usize,
    acts: Vec<u8>,
    n_acts: usize,
}

impl Case {
    /// Weights at an odd address, with a gap after each row.
    fn new(
        ty: Type,
        n_rows: usize,
        n_in: usize,
        n_acts: usize,
        how: Fill,
        random: &mut Random,
    ) -> Case {
        let used = ty.row_bytes(n_in).unwrap();
        let gap = random.below(3) * 7;
        let row_bytes = used + gap;
        let mut data = vec![0xff; 64 + row_bytes * n_rows - gap];
        let offset = data.as_ptr().align_offset(32) + 1 + random.below(31);
        data.truncate(offset + row_bytes * n_rows - gap);
        // Nothing behind the last row: valgrind then sees reads beyond it.
        data.shrink_to_fit();
        for r in 0..n_rows {
            fill(ty, &mut data[offset + r * row_bytes..][..used], how, random);
        }
        let form = ty.activation();
        let mut acts = vec![0; form.row_bytes(n_in) * n_acts];
        for act in acts.chunks_exact_mut(form.row_bytes(n_in)) {
            let size = 10f32.powi(random.below(5) as i32 - 2);
            let extreme = how == Fill::Ones || random.below(4) == 0;
            let values: Vec<f32> = (0..n_in)
                .map(|_| match extreme {
                    // The largest codes: sums that saturate would show.
                    true => size,
                    false => random.noise() * size,
                })
                .map(|x| if how == Fill::Usual && extreme { -x } else { x })
                .collect();
            form.quantize_row(Isa::Scalar, &values, act).unwrap();
        }
        Case {
            ty,
            data,
            offset,
            row_bytes,
            n_rows,
            n_in,
            acts,
            n_acts,
        }
    }

    fn weights(&self) -> Weights<'_> {
        Weights::new(
            self.ty,
            &self.data[self.offset..],
            self.row_bytes,
            self.n_rows,
            self.n_in,
        )
        .unwrap()
    }

    fn run(
        &self,
        isa: Isa,
        rows: std::ops::Range<usize>,
        act_rows: &[u32],
        scratch: &mut Scratch,
    ) -> Vec<f32> {
        let mut once = |way| {
            choose_lookup(way);
            let mut out = vec![f32::NAN; rows.len() * act_rows.len()];
            matmul(
                isa,
                &self.weights(),
                rows.clone(),
                &self.acts,
                act_rows,
                &mut out,
                scratch,
            )
            .unwrap();
            out
        };
        let out = once(Lookup::Store);
        if isa != Isa::Scalar {
            let bits = |out: &[f32]| out.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            for way in [Lookup::Insert, Lookup::Gather] {
                assert!(bits(&out) == bits(&once(way)), "{:?}, {way:?}", self.ty);
            }
        }
        out
    }

    fn is_float(&self) -> bool {
        matches!(self.ty, Type::F32 | Type::F16 | Type::BF16)
    }
}

/// Bits for block types; floats are summed in another order.
fn same(case: &Case, expected: &[f32], found: &[f32], what: &str) {
    let scale = expected.iter().map(|x| x.abs()).sum::<f32>() / expected.len().max(1) as f32;
    for (i, (x, y)) in expected.iter().zip(found).enumerate() {
        let good = if case.is_float() {
            (x - y).abs() <= 1e-4 * (scale + x.abs())
        } else {
            x.to_bits() == y.to_bits() || x.is_nan() && y.is_nan()
        };
        assert!(
            good,
            "{:?} {what}: element {i}: {x} expected, {y} found",
            case.ty
        );
    }
}

/// All cases, or with `MOQA_REDUCED` the first so many: under valgrind each takes a hundred times as long.
fn reduced<T>(cases: &[T], first: usize) -> &[T] {
    match std::env::var_os("MOQA_REDUCED") {
        Some(_) => &cases[..first],
        None => cases,
    }
}

#[test]
fn paths_agree() {
    let mut random = Random(1);
    let mut scratch = Scratch::new();
    for &ty in Type::ALL {
        let unit = ty.block_elems().max(8);
        let fills = [Fill::Usual, Fill::AnyScale, Fill::Zero, Fill::Ones];
        for &how in reduced(&fills, 1) {
            for &n_rows in reduced(&[1, 2, 3, 5, 8, 19, 33], 5) {
                for &n_acts in reduced(&[5, 1, 16, 2, 3, 4, 7, 8, 9, 13], 3) {
                    let n_in = unit * (1 + random.below(if unit == 256 { 3 } else { 20 }));
                    let case = Case::new(ty, n_rows, n_in, n_acts, how, &mut random);
                    let act_rows: Vec<u32> = (0..n_acts)
                        .map(|_| random.below(case.n_acts) as u32)
                        .collect();
                    let expected = case.run(Isa::Scalar, 0..n_rows, &act_rows, &mut scratch);
                    for isa in Isa::available() {
                        let found = case.run(isa, 0..n_rows, &act_rows, &mut scratch);
                        let what = format!("{isa:?} {n_rows}x{n_in} with {n_acts}");
                        same(&case, &expected, &found, &what);
                    }
                }
            }
        }
    }
}

/// Rows in their type's unpacked form, made on any path, give the same bits.
#[test]
fn unpacked_rows_agree() {
    let mut random = Random(9);
    let mut scratch = Scratch::new();
    let unpackable = Type::ALL
        .iter()
        .filter(|ty| ty.unpacked_block_bytes().is_some());
    let mut n_types = 0;
    for &ty in unpackable {
        n_types += 1;
        for &how in reduced(&[Fill::Usual, Fill::AnyScale, Fill::Zero, Fill::Ones], 1) {
            for &(n_rows, n_acts) in reduced(&[(3, 1), (8, 5), (5, 2), (19, 4), (33, 16)], 2) {
                let n_in = 256 * (1 + random.below(3));
                let case = Case::new(ty, n_rows, n_in, n_acts, how, &mut random);
                let act_rows: Vec<u32> = (0..n_acts as u32).collect();
                let expected = case.run(Isa::Scalar, 0..n_rows, &act_rows, &mut scratch);
                let row = ty.unpacked_row_bytes(n_in).unwrap();
                let unpack = |isa| {
                    let mut out = vec![0xff; row * n_rows];
                    for (r, out) in out.chunks_exact_mut(row).enumerate() {
                        unpack_row(isa, ty, case.weights().row(r), out).unwrap();
                    }
                    out
                };
                let bytes = unpack(Isa::Scalar);
                let weights = Weights::unpacked(ty, &bytes, row, n_rows, n_in).unwrap();
                for isa in Isa::available() {
                    assert!(bytes == unpack(isa), "{ty:?} unpacked on {isa:?}");
                    let mut out = vec![f32::NAN; n_rows * n_acts];
                    matmul(
                        isa,
                        &weights,
                        0..n_rows,
                        &case.acts,
                        &act_rows,
                        &mut out,
                        &mut scratch,
                    )
                    .unwrap();
                    let what = format!("unpacked, {isa:?} {n_rows}x{n_in} with {n_acts}");
                    same(&case, &expected, &out, &what);
                }
            }
        }
    }
    assert_eq!(n_types, 6);
}

/// Activations as large as can be whose signs are those of a row of weights: no sums of products are larger.
#[test]
fn largest_sums() {
    let mut random = Random(5);
    let mut scratch = Scratch::new();
    for &ty in Type::ALL {
        let n_in = ty.block_elems().max(32) * 2;
        for how in reduced(&[Fill::Usual, Fill::Ones], 1) {
            let mut case = Case::new(ty, 9, n_in, 18, *how, &mut random);
            let form = ty.activation();
            let acts = case.acts.chunks_exact_mut(form.row_bytes(n_in));
            for (i, act) in acts.enumerate() {
                let mut values = vec![0f32; n_in];
                let row = &case.data[case.offset + i / 2 * case.row_bytes..];
                let row = &row[..ty.row_bytes(n_in).unwrap()];
                dequantize_row(ty, row, &mut values).unwrap();
                let sign = if i % 2 == 0 { 1.0 } else { -1.0 };
                values.iter_mut().for_each(|x| *x = sign * x.signum());
                form.quantize_row(Isa::Scalar, &values, act).unwrap();
            }
            let all: Vec<u32> = (0..18).collect();
            let expected = case.run(Isa::Scalar, 0..9, &all, &mut scratch);
            for isa in Isa::available() {
                let found = case.run(isa, 0..9, &all, &mut scratch);
                same(&case, &expected, &found, &format!("{isa:?} {how:?}"));
            }
        }
    }
}

#[test]
fn any_number_of_activations() {
    let mut random = Random(2);
    let mut scratch = Scratch::new();
    for &ty in Type::ALL {
        let n_in = ty.block_elems().max(32) * 2;
        let case = Case::new(ty, 17, n_in, 70, Fill::Usual, &mut random);
        let all: Vec<u32> = (0..70).rev().collect();
        let all_numbers: Vec<usize> = (0..=70).collect();
        let expected = case.run(Isa::Scalar, 0..17, &all, &mut scratch);
        for isa in Isa::available() {
            for &n in reduced(&[0, 1, 17, 70], 4)
                .iter()
                .chain(reduced(&all_numbers, 0))
            {
                let found = case.run(isa, 0..17, &all[..n], &mut scratch);
                assert_eq!(found.len(), 17 * n);
                same(
                    &case,
                    &expected,
                    &found,
                    &format!("{isa:?} with {n} activations"),
                );
            }
        }
    }
}

/// Elements are the same bits however rows and activations are split over calls.
#[test]
fn splits_do_not_matter() {
    let mut random = Random(3);
    let mut scratch = Scratch::new();
    for &ty in Type::ALL {
        let n_in = ty.block_elems().max(32) * 3;
        let (n_rows, n_acts) = (37, 23);
        let case = Case::new(ty, n_rows, n_in, n_acts, Fill::Usual, &mut random);
        let all: Vec<u32> = (0..n_acts as u32).collect();
        for isa in Isa::available() {
            let whole = case.run(isa, 0..n_rows, &all, &mut scratch);
            for _ in 0..20 {
                let start = random.below(n_rows);
                let end = start + 1 + random.below(n_rows - start);
                let from = random.below(n_acts);
                let to = from + 1 + random.below(n_acts - from);
                let found = case.run(isa, start..end, &all[from..to], &mut scratch);
                for t in from..to {
                    let part = &found[(t - from) * (end - start)..][..end - start];
                    let expected = &whole[t * n_rows + start..t * n_rows + end];
                    let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
                    assert_eq!(
                        bits(part),
                        bits(expected),
                        "{ty:?} {isa:?} rows {start}..{end}"
                    );
                }
            }
        }
    }
}

#[test]
fn refuses_to_unpack_what_does_not_fit() {
    let row = [0; 220];
    let mut out = [0; 268];
    assert!(unpack_row(Isa::Scalar, Type::IQ3_S, &row, &mut out).is_ok());
    assert!(unpack_row(Isa::Scalar, Type::IQ3_S, &row, &mut out[1..]).is_err());
    assert!(unpack_row(Isa::Scalar, Type::IQ3_S, &row[1..], &mut out).is_err());
    assert!(unpack_row(Isa::Scalar, Type::Q4_K, &row[..144], &mut out).is_err());
    assert!(unpack_row(Isa::Scalar, Type::IQ3_S, &[], &mut []).is_ok());
    assert!(Weights::unpacked(Type::IQ3_S, &out, 134, 2, 256).is_ok());
    assert!(Weights::unpacked(Type::IQ3_S, &out, 134, 3, 256).is_err());
    assert!(Weights::unpacked(Type::Q4_K, &out, 144, 1, 256).is_err());
}

#[test]
fn refuses_bad_calls() {
    let mut random = Random(4);
    let case = Case::new(Type::Q4_K, 4, 512, 2, Fill::Usual, &mut random);
    let weights = case.weights();
    let mut scratch = Scratch::new();
    for isa in Isa::available() {
        let mut out = [7f32; 8];
        let mut call = |rows, acts: &[u8], act_rows: &[u32], n_out: usize| {
            let result = matmul(
                isa,
                &weights,
                rows,
                acts,
                act_rows,
                &mut out[..n_out],
                &mut scratch,
            );
            if result.is_err() {
                assert_eq!(out, [7f32; 8]);
            }
            result.is_ok()
        };
        assert!(!call(0..5, &case.acts, &[0, 1], 8));
        assert!(!call(0..4, &case.acts, &[0, 2], 8));
        assert!(!call(0..4, &case.acts[1..], &[0, 1], 8));
        assert!(!call(0..4, &case.acts, &[0, 1], 7));
        assert!(call(2..2, &case.acts, &[0, 1], 0));
        assert!(call(0..4, &case.acts, &[], 0));
        assert!(call(0..4, &case.acts, &[0, 1], 8));
    }
    for isa in Isa::ALL {
        let mut out = [0f32; 4];
        let result = matmul(
            isa,
            &weights,
            0..4,
            &case.acts,
            &[0],
            &mut out,
            &mut scratch,
        );
        assert_eq!(result.is_ok(), isa.is_available());
    }
}
