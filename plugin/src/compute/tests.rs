//! Products against the same sums in `f64` over dequantized weights.

use moqa_kernels::{Type, dequantize_row};
use moqa_mixed::{Block, Layout, Shape};

use super::Computer;
use super::experts::Experts;
use super::product::{Error, Product};
use super::rows::{Form, Input, Output, read_ids};
use crate::pool::Pool;

/// xorshift64*: enough for weights and routes.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    /// In -1..1.
    fn float(&mut self) -> f32 {
        (self.next() % 20_001) as f32 / 10_000.0 - 1.0
    }

    fn floats(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.float()).collect()
    }
}

/// Blocks of a type, of any bits, but with scales of usual sizes.
fn blocks(random: &mut Random, ty: Type, rows: usize, n_in: usize) -> Vec<u8> {
    let half = |x: f32| {
        // Of a normal number below 1, rounded towards zero.
        let bits = x.to_bits();
        let exponent = ((bits >> 23) & 0xff) as i32 - 127 + 15;
        (((bits >> 16) & 0x8000) | ((exponent as u32) << 10) | ((bits >> 13) & 0x3ff)) as u16
    };
    let scale = |random: &mut Random| half(0.01 + 0.01 * random.float().abs()).to_le_bytes();
    let mut out = Vec::new();
    for _ in 0..rows * n_in / ty.block_elems() {
        let mut block: Vec<u8> = (0..ty.block_bytes()).map(|_| random.next() as u8).collect();
        match ty {
            Type::F32 => block.copy_from_slice(&random.float().to_le_bytes()),
            Type::F16 => block.copy_from_slice(&half(random.float() * 0.5 + 0.51).to_le_bytes()),
            Type::BF16 => block.copy_from_slice(&random.float().to_bits().to_le_bytes()[2..]),
            Type::Q8_0
            | Type::Q4_0
            | Type::IQ2_XXS
            | Type::IQ2_XS
            | Type::IQ2_S
            | Type::IQ3_XXS
            | Type::IQ3_S => block[..2].copy_from_slice(&scale(random)),
            Type::Q4_K => {
                block[..2].copy_from_slice(&scale(random));
                block[2..4].copy_from_slice(&scale(random));
            }
            Type::Q6_K => block[208..].copy_from_slice(&scale(random)),
            other => panic!("no blocks of {}", other.name()),
        }
        out.extend(block);
    }
    out
}

/// Bytes of a tensor whose experts have these types: a mixed container, or an ordinary one.
fn tensor(random: &mut Random, shape: Shape, types: &[Type], mixed: bool) -> Vec<u8> {
    let (n_in, n_out) = (shape.n_in as usize, shape.n_out as usize);
    if !mixed {
        return types
            .iter()
            .flat_map(|ty| blocks(random, *ty, n_out, n_in))
            .collect();
    }
    let ids: Vec<u32> = types.iter().map(|t| t.id()).collect();
    let layout = Layout::new(shape, &ids, |id| {
        let ty = Type::from_id(id)?;
        Some(Block {
            elems: ty.block_elems() as u64,
            bytes: ty.block_bytes() as u64,
        })
    })
    .unwrap();
    let bytes = layout.sealed_bytes() + 32;
    let mut out = layout.to_header();
    for (ty, expert) in types.iter().zip(&layout.experts) {
        out.resize(expert.offset as usize, 0);
        out.extend(blocks(random, *ty, n_out, n_in));
    }
    out.resize((bytes - moqa_mixed::SEAL_BYTES) as usize, 0);
    out.extend(layout.to_seal(bytes));
    out
}

/// Rows of a tensor with gaps of `gap` bytes between rows.
fn form(ne: [usize; 4], gap: usize) -> Form {
    let row = ne[0] * 4 + gap;
    Form {
        ne,
        nb: [4, row, row * ne[1], row * ne[1] * ne[2]],
    }
}

fn span(form: Form) -> usize {
    form.nb[3] * form.ne[3]
}

fn with_gaps(values: &[f32], form: Form) -> Vec<u8> {
    let mut out = vec![0xee; span(form)];
    for (row, values) in values.chunks_exact(form.ne[0]).enumerate() {
        for (i, value) in values.iter().enumerate() {
            out[row * form.nb[1] + i * 4..][..4].copy_from_slice(&value.to_ne_bytes());
        }
    }
    out
}

fn floats(bytes: &[u8], form: Form) -> Vec<f32> {
    (0..form.n_rows())
        .flat_map(|row| (0..form.ne[0]).map(move |i| row * form.nb[1] + i * 4))
        .map(|at| f32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap()))
        .collect()
}

/// `weights . x` in double precision, and the sum of the products' sizes, which bounds the error of rounding.
fn reference(experts: &Experts, bytes: &[u8], expert: usize, x: &[f32]) -> Vec<(f64, f64)> {
    let weights = experts.weights(bytes, expert).unwrap();
    let mut row = vec![0.0; experts.n_in()];
    (0..experts.n_out())
        .map(|r| {
            dequantize_row(weights.ty(), weights.row(r), &mut row).unwrap();
            row.iter().zip(x).fold((0.0, 0.0), |(sum, size), (w, x)| {
                let product = f64::from(*w) * f64::from(*x);
                (sum + product, size + product.abs())
            })
        })
        .collect()
}

/// Largest errors of products, over the sum of their parts' sizes, with activations rounded to int8 once and twice.
const ONCE: f64 = 0.01;
const TWICE: f64 = 1e-4;

fn check(found: &[f32], expected: &[(f64, f64)], precision: f64) {
    assert_eq!(found.len(), expected.len());
    for (i, (found, (sum, size))) in found.iter().zip(expected).enumerate() {
        // Activations have 8 bits: half a step of 1/127 of the largest, which is at most twice a usual one.
        let error = (f64::from(*found) - sum).abs();
        assert!(
            error <= precision * size + 1e-6,
            "{i}: {found} for {sum} ± {size}"
        );
    }
}

/// A case of `MUL_MAT_ID`.
struct Case {
    shape: Shape,
    types: Vec<Type>,
    mixed: bool,
    n_used: usize,
    n_tokens: usize,
    /// Whether each slot has activations of its own.
    own: bool,
    /// Bytes between rows.
    gap: usize,
    fine: bool,
    /// Whether experts are unpacked where their types can be.
    unpacked: bool,
}

fn run(case: &Case, threads: usize, seed: u64) -> Vec<f32> {
    let mut random = Random(seed);
    let shape = case.shape;
    let bytes = tensor(&mut random, shape, &case.types, case.mixed);
    let experts = Experts::find(case.types[0], shape, &bytes).unwrap();
    assert_eq!(experts.is_mixed(), case.mixed);
    let (n_in, n_out) = (shape.n_in as usize, shape.n_out as usize);
    let n_slots = if case.own { case.n_used } else { 1 };
    let in_form = form([n_in, n_slots, case.n_tokens, 1], case.gap);
    let out_form = form([n_out, case.n_used, case.n_tokens, 1], case.gap);
    let x = random.floats(n_in * n_slots * case.n_tokens);
    let ids: Vec<i32> = (0..case.n_used * case.n_tokens)
        .map(|_| random.below(shape.n_expert as usize) as i32)
        .collect();
    let input = with_gaps(&x, in_form);
    let mut output = vec![0x55; span(out_form)];
    let mut computer = Computer::new(Pool::new(threads));
    let packed = Experts::find(case.types[0], shape, &bytes).unwrap();
    if case.unpacked {
        experts.unpack(|| computer.unpack(&packed, &bytes).unwrap());
        assert!((0..case.types.len()).all(|e| {
            let row = case.types[e].unpacked_row_bytes(n_in);
            experts.row_bytes(e) == row.unwrap_or(packed.row_bytes(e))
        }));
    }
    // SAFETY: both vectors are as long as the forms say.
    unsafe {
        let mut product = Product::by_ids(
            "test".into(),
            &experts,
            &bytes,
            Input::new(input.as_ptr(), in_form).unwrap(),
            &ids,
            Output::new(output.as_mut_ptr(), out_form).unwrap(),
        )
        .unwrap();
        product.fine = case.fine;
        let products = [product];
        computer.step(&products, None).unwrap();
        // Again, with the memory of the first time.
        computer.step(&products, None).unwrap();
    }
    let found = floats(&output, out_form);
    for (row, (&id, found)) in ids.iter().zip(found.chunks_exact(n_out.max(1))).enumerate() {
        let (token, slot) = (row / case.n_used, row % case.n_used);
        let at = (token * n_slots + slot % n_slots) * n_in;
        check(
            found,
            &reference(&packed, &bytes, id as usize, &x[at..at + n_in]),
            if case.fine { TWICE } else { ONCE },
        );
    }
    for row in output.chunks_exact(out_form.nb[1]) {
        assert!(
            row[n_out * 4..].iter().all(|b| *b == 0x55),
            "written between rows"
        );
    }
    found
}

fn case(types: &[Type], n_in: u64, n_out: u64) -> Case {
    Case {
        shape: Shape {
            n_in,
            n_out,
            n_expert: types.len() as u64,
        },
        types: types.to_vec(),
        mixed: false,
        n_used: 2,
        n_tokens: 5,
        own: false,
        gap: 0,
        fine: false,
        unpacked: false,
    }
}

#[test]
fn ordinary_experts_agree_with_the_reference() {
    for ty in [
        Type::F32,
        Type::F16,
        Type::BF16,
        Type::Q8_0,
        Type::Q4_0,
        Type::Q4_K,
        Type::Q6_K,
    ] {
        for n_out in [1, 7, 70] {
            run(&case(&[ty; 6], 256, n_out), 2, 1 + n_out);
        }
    }
}

#[test]
fn every_number_of_tokens_and_slots() {
    for n_tokens in [1, 2, 3, 33, 300] {
        for n_used in [1, 3, 8] {
            for own in [false, true] {
                let more = Case {
                    n_tokens,
                    n_used,
                    own,
                    gap: 12,
                    ..case(&[Type::Q8_0; 4], 64, 19)
                };
                run(&more, 2, 5);
            }
        }
    }
}

#[test]
fn mixed_experts_each_in_their_type() {
    for own in [false, true] {
        let mixed = Case {
            mixed: true,
            own,
            n_tokens: 40,
            n_used: 3,
            ..case(
                &[
                    Type::Q4_K,
                    Type::Q8_0,
                    Type::F16,
                    Type::Q6_K,
                    Type::Q4_0,
                    Type::BF16,
                ],
                512,
                70,
            )
        };
        run(&mixed, 3, 9);
    }
}

#[test]
fn unpacked_experts_give_the_same_bits() {
    let types = [
        Type::IQ3_S,
        Type::Q8_0,
        Type::IQ2_XXS,
        Type::IQ3_XXS,
        Type::IQ2_S,
        Type::Q4_K,
        Type::IQ2_XS,
    ];
    for (n_tokens, threads, fine) in [(1, 1, false), (3, 2, true), (40, 3, false)] {
        for mixed in [false, true] {
            let uniform = [Type::IQ3_S; 7];
            let packed = Case {
                mixed,
                n_tokens,
                n_used: 3,
                fine,
                ..case(if mixed { &types } else { &uniform }, 512, 70)
            };
            let expected = run(&packed, threads, 11);
            let found = run(
                &Case {
                    unpacked: true,
                    ..packed
                },
                threads,
                11,
            );
            assert!(expected == found);
        }
    }
}

#[test]
fn activations_rounded_twice_are_finer() {
    // Both more and fewer rows than kernels take at once, and tasks of more tokens than they get.
    for n_tokens in [1, 2, 7, 40, 300] {
        for own in [false, true] {
            let types = [
                Type::Q4_K,
                Type::Q8_0,
                Type::F16,
                Type::Q6_K,
                Type::Q4_0,
                Type::F32,
            ];
            let fine = Case {
                mixed: true,
                fine: true,
                own,
                n_tokens,
                gap: 4,
                ..case(&types, 512, 70)
            };
            run(&fine, 2, 4);
        }
    }
}

#[test]
fn results_do_not_depend_on_threads() {
    for fine in [false, true] {
        threads_agree(fine);
    }
}

fn threads_agree(fine: bool) {
    let mixed = Case {
        mixed: true,
        fine,
        n_tokens: 150,
        ..case(&[Type::Q4_K, Type::Q8_0, Type::F32], 256, 130)
    };
    let one: Vec<u32> = run(&mixed, 1, 3).iter().map(|x| x.to_bits()).collect();
    for threads in [2, 3, 8] {
        let more: Vec<u32> = run(&mixed, threads, 3)
            .iter()
            .map(|x| x.to_bits())
            .collect();
        assert!(one == more, "{threads} threads");
    }
}

#[test]
fn products_of_one_step_share_activations() {
    let mut random = Random(77);
    let shape = Shape {
        n_in: 256,
        n_out: 24,
        n_expert: 3,
    };
    let types = [Type::Q4_K, Type::Q8_0, Type::Q4_K];
    let gate = tensor(&mut random, shape, &types, true);
    let up = tensor(&mut random, shape, &[Type::Q8_0; 3], false);
    let (gate_experts, up_experts) = (
        Experts::find(Type::Q8_0, shape, &gate).unwrap(),
        Experts::find(Type::Q8_0, shape, &up).unwrap(),
    );
    let in_form = form([256, 1, 4, 1], 0);
    let out_form = form([24, 2, 4, 1], 0);
    let x = random.floats(256 * 4);
    let ids = [0, 1, 1, 2, 2, 0, 1, 0];
    let input = with_gaps(&x, in_form);
    let mut outputs = [vec![0u8; span(out_form)], vec![0u8; span(out_form)]];
    let [a, b] = &mut outputs;
    // SAFETY: the vectors are as long as the forms say.
    unsafe {
        let input = Input::new(input.as_ptr(), in_form).unwrap();
        let product = |experts, bytes, output: &mut Vec<u8>| {
            let output = Output::new(output.as_mut_ptr(), out_form).unwrap();
            Product::by_ids("test".into(), experts, bytes, input, &ids, output).unwrap()
        };
        let products = [
            product(&gate_experts, &gate, a),
            product(&up_experts, &up, b),
        ];
        let (quantized, _) = super::plan(&products, None, 2);
        // One form for all of up and an expert of gate, another for the rest of gate.
        let rows: Vec<_> = quantized.iter().map(|q| q.rows.len()).collect();
        assert_eq!(rows.len(), 2);
        assert!(
            rows.iter().all(|n| *n <= 4),
            "a row was quantized twice: {rows:?}"
        );
        Computer::new(Pool::new(2)).step(&products, None).unwrap();
    }
    for (bytes, experts, out) in [
        (&gate, &gate_experts, &outputs[0]),
        (&up, &up_experts, &outputs[1]),
    ] {
        for (row, found) in floats(out, out_form).chunks_exact(24).enumerate() {
            let at = row / 2 * 256;
            check(
                found,
                &reference(experts, bytes, ids[row] as usize, &x[at..at + 256]),
                ONCE,
            );
        }
    }
}

#[test]
fn dense_products_with_broadcast_matrices() {
    let mut random = Random(123);
    for (n_expert, n2, n3) in [(1, 1, 1), (1, 3, 2), (2, 4, 1), (2, 6, 2)] {
        let shape = Shape {
            n_in: 64,
            n_out: 11,
            n_expert,
        };
        let bytes = tensor(
            &mut random,
            shape,
            &vec![Type::Q8_0; n_expert as usize],
            false,
        );
        let experts = Experts::find(Type::Q8_0, shape, &bytes).unwrap();
        let in_form = form([64, 3, n2, n3], 8);
        let out_form = form([11, 3, n2, n3], 4);
        let x = random.floats(64 * 3 * n2 * n3);
        let input = with_gaps(&x, in_form);
        let mut output = vec![0u8; span(out_form)];
        // SAFETY: the vectors are as long as the forms say.
        unsafe {
            let product = Product::dense(
                "test".into(),
                &experts,
                &bytes,
                Input::new(input.as_ptr(), in_form).unwrap(),
                Output::new(output.as_mut_ptr(), out_form).unwrap(),
            );
            Computer::new(Pool::new(2))
                .step(&[product.unwrap()], None)
                .unwrap();
        }
        for (row, found) in floats(&output, out_form).chunks_exact(11).enumerate() {
            let expert = row / 3 % n2 / (n2 / n_expert as usize);
            check(
                found,
                &reference(&experts, &bytes, expert, &x[row * 64..row * 64 + 64]),
                ONCE,
            );
        }
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let mut random = Random(4);
    let shape = Shape {
        n_in: 32,
        n_out: 4,
        n_expert: 2,
    };
    let bytes = tensor(&mut random, shape, &[Type::Q8_0; 2], false);
    assert!(
        Experts::find(Type::Q8_0, shape, &bytes[1..]).is_err(),
        "too short"
    );
    assert!(
        Experts::find(Type::Q4_K, shape, &bytes).is_err(),
        "rows of other blocks"
    );
    let huge = Shape {
        n_in: 32,
        n_out: u64::MAX / 8,
        n_expert: 9,
    };
    assert!(Experts::find(Type::Q8_0, huge, &bytes).is_err(), "overflow");
    let experts = Experts::find(Type::Q8_0, shape, &bytes).unwrap();
    let (mut input, mut output) = (vec![0u8; 4096], vec![0u8; 4096]);
    let mut attempt = |i: [usize; 4], o: [usize; 4], ids: &[i32], bytes: &[u8]| {
        // SAFETY: no form below needs more than 4096 bytes.
        unsafe {
            Product::by_ids(
                "test".into(),
                &experts,
                bytes,
                Input::new(input.as_mut_ptr(), form(i, 0)).unwrap(),
                ids,
                Output::new(output.as_mut_ptr(), form(o, 0)).unwrap(),
            )
            .map(|p| p.pairs.len())
        }
    };
    assert_eq!(
        attempt([32, 1, 3, 1], [4, 2, 3, 1], &[0, 1, 1, 0, 1, 1], &bytes),
        Ok(6)
    );
    assert_eq!(attempt([32, 1, 0, 1], [4, 2, 0, 1], &[], &bytes), Ok(0));
    for id in [-1, 2, i32::MIN, i32::MAX] {
        let result = attempt([32, 1, 1, 1], [4, 2, 1, 1], &[0, id], &bytes);
        assert_eq!(
            result,
            Err(Error::Expert {
                id,
                experts: 2,
                token: 0
            })
        );
    }
    assert!(
        attempt([31, 1, 1, 1], [4, 1, 1, 1], &[0], &bytes).is_err(),
        "other rows"
    );
    assert!(
        attempt([32, 1, 1, 1], [5, 1, 1, 1], &[0], &bytes).is_err(),
        "other results"
    );
    assert!(
        attempt([32, 1, 2, 1], [4, 1, 1, 1], &[0], &bytes).is_err(),
        "other tokens"
    );
    assert!(
        attempt([32, 2, 1, 1], [4, 3, 1, 1], &[0; 3], &bytes).is_err(),
        "other slots"
    );
    assert!(
        attempt([32, 1, 1, 2], [4, 1, 1, 2], &[0], &bytes).is_err(),
        "four dimensions"
    );
    assert!(
        attempt([32, 1, 1, 1], [4, 1, 1, 1], &[0], &bytes[1..]).is_err(),
        "short weights"
    );
    // SAFETY: refused before anything is read.
    unsafe {
        let strided = Form {
            ne: [4, 2, 1, 1],
            nb: [8, 32, 64, 64],
        };
        assert!(Input::new(bytes.as_ptr(), strided).is_err());
        let overlapping = Form {
            ne: [4, 2, 1, 1],
            nb: [4, 12, 32, 32],
        };
        assert!(Output::new(std::ptr::null_mut(), overlapping).is_err());
        let endless = Form {
            ne: [4, 2, 1, 1],
            nb: [4, usize::MAX, 0, 0],
        };
        assert!(Input::new(bytes.as_ptr(), endless).is_err());
        assert!(Input::new(std::ptr::null(), form([4, 1, 1, 1], 0)).is_err());
    }
}

#[test]
fn gated_units_of_any_rows_and_threads() {
    use super::glu::{Glu, Kind};
    let mut random = Random(77);
    for (n, n_slots, n_tokens, gap) in [
        (1, 1, 1, 0),
        (33, 3, 2, 8),
        (1024, 8, 1, 0),
        (768, 8, 70, 4),
    ] {
        let wide = form([2 * n, n_slots, n_tokens, 1], gap);
        let narrow = form([n, n_slots, n_tokens, 1], gap);
        let values = random.floats(2 * n * n_slots * n_tokens);
        let others = random.floats(n * n_slots * n_tokens);
        let (both, up) = (with_gaps(&values, wide), with_gaps(&others, narrow));
        let kind = Kind::Swiglu;
        let run = |threads: usize, halves: bool, swapped: bool| {
            let mut out = vec![0x55; span(narrow)];
            // SAFETY: the vectors are as long as the forms say; of a wide row the front is a gate's.
            unsafe {
                let gate_form = Form {
                    nb: wide.nb,
                    ..narrow
                };
                let gate_form = if halves { wide } else { gate_form };
                let gate = Input::new(both.as_ptr(), gate_form).unwrap();
                let up = (!halves).then(|| Input::new(up.as_ptr(), narrow).unwrap());
                let output = Output::new(out.as_mut_ptr(), narrow).unwrap();
                let glu = Glu::new("test".into(), kind, gate, up, swapped, output).unwrap();
                Computer::new(Pool::new(threads)).glu(&glu).unwrap();
            }
            floats(&out, narrow)
        };
        for (halves, swapped) in [(false, false), (true, false), (true, true)] {
            let found = run(1, halves, swapped);
            for (row, found) in found.chunks_exact(n).enumerate() {
                let both = &values[2 * n * row..][..2 * n];
                let (first, second) = both.split_at(n);
                let (x, y) = match (halves, swapped) {
                    (false, _) => (first, &others[n * row..][..n]),
                    (true, false) => (first, second),
                    (true, true) => (second, first),
                };
                let mut expected = vec![0.0; n];
                kind.apply(x, y, &mut expected);
                assert_eq!(expected, found, "{n} {n_slots} {n_tokens} row {row}");
            }
            assert_eq!(found, run(3, halves, swapped));
        }
    }
}

#[test]
fn expert_numbers_of_a_view() {
    // Two of four numbers of each token, as `ffn_moe_topk` is a view of all experts sorted.
    let all: Vec<u8> = (0..12i32).flat_map(i32::to_ne_bytes).collect();
    let form = Form {
        ne: [2, 3, 1, 1],
        nb: [4, 16, 48, 48],
    };
    // SAFETY: as long as the form says.
    let ids = unsafe { read_ids(all.as_ptr(), form) };
    assert_eq!(ids, Ok(vec![0, 1, 4, 5, 8, 9]));
}

/// One step that makes a gated linear unit of gate and up, and weights another product: the bits of single steps.
#[test]
fn units_and_weights_within_a_step() {
    use super::Gated;
    use super::glu::{Glu, Kind};
    use super::weighing::Weighing;
    let mut random = Random(99);
    let (n_in, n_out, n_used) = (256, 300, 2);
    let shape = Shape {
        n_in: n_in as u64,
        n_out: n_out as u64,
        n_expert: 3,
    };
    let types = [
        [Type::Q4_K, Type::Q8_0, Type::F32],
        [Type::Q6_K, Type::Q4_K, Type::Q8_0],
        [Type::Q4_K; 3],
    ];
    let tensors = types.map(|types| tensor(&mut random, shape, &types, true));
    let experts: Vec<_> = tensors
        .iter()
        .map(|bytes| Experts::find(Type::Q8_0, shape, bytes).unwrap())
        .collect();
    for n_tokens in [1, 7, 600] {
        let in_form = form([n_in, 1, n_tokens, 1], 0);
        let out_form = form([n_out, n_used, n_tokens, 1], 8);
        let input = with_gaps(&random.floats(n_in * n_tokens), in_form);
        // An expert without tokens in the first case.
        let ids: Vec<i32> = (0..n_used * n_tokens)
            .map(|_| random.below(3) as i32)
            .collect();
        let weights = random.floats(n_used * n_tokens);
        let run = |threads: usize, together: bool| {
            let mut out = [0; 5].map(|_| vec![0u8; span(out_form)]);
            let [gate, up, down, unit, weighted] = &mut out;
            // SAFETY: the vectors are as long as the forms say.
            unsafe {
                let output =
                    |bytes: &mut Vec<u8>| Output::new(bytes.as_mut_ptr(), out_form).unwrap();
                let product = |number: usize, bytes| {
                    let input = Input::new(input.as_ptr(), in_form).unwrap();
                    let (experts, tensor) = (&experts[number], &tensors[number]);
                    Product::by_ids("test".into(), experts, tensor, input, &ids, output(bytes))
                        .unwrap()
                };
                let mut computer = Computer::new(Pool::new(threads));
                if together {
                    let down = product(2, weighted).weighted(weights.clone()).unwrap();
                    let products = [product(0, gate), down, product(1, up)];
                    assert!(products[0].goes_with(&products[2]));
                    let gated = Gated {
                        gate: 0,
                        up: 2,
                        kind: Kind::Swiglu,
                        output: output(unit),
                    };
                    computer.step(&products, Some(&gated)).unwrap();
                    drop(products);
                    assert!(gate.iter().chain(up.iter()).all(|byte| *byte == 0));
                } else {
                    let products = [product(0, gate), product(1, up), product(2, down)];
                    computer.step(&products, None).unwrap();
                    drop(products);
                    let input = |bytes: &Vec<u8>| Input::new(bytes.as_ptr(), out_form).unwrap();
                    let (gate, up, unit) = (input(gate), input(up), output(unit));
                    let glu = Glu::new("test".into(), Kind::Swiglu, gate, Some(up), false, unit);
                    computer.glu(&glu.unwrap()).unwrap();
                    let weighing = Weighing::new(input(down), weights.clone(), output(weighted));
                    computer.weigh(&weighing.unwrap()).unwrap();
                }
            }
            let [.., unit, weighted] = out;
            [unit, weighted].map(|bytes| floats(&bytes, out_form))
        };
        let apart = run(1, false);
        assert_eq!(apart, run(3, false), "{n_tokens}");
        assert_eq!(apart, run(1, true), "{n_tokens}");
        assert_eq!(apart, run(3, true), "{n_tokens}");
    }
}
