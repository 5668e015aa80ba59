//! Mixed containers in the real llama-perplexity: computed with each expert's own type, and refused when damaged.

mod common;

use std::path::{Path, PathBuf};

use common::{Perplexity, Tensor, quantize, tensors, text};
use moqa_kernels::{Type, dequantize_row};
use moqa_mixed::{Block, Layout, SEAL_BYTES, Shape, header_bytes};

fn block(id: u32) -> Option<Block> {
    Type::from_id(id).map(|ty| Block {
        elems: ty.block_elems() as u64,
        bytes: ty.block_bytes() as u64,
    })
}

fn shape(tensor: &Tensor) -> Shape {
    let [n_in, n_out, n_expert] = tensor.ne[..] else {
        panic!("{tensor:?}");
    };
    Shape {
        n_in,
        n_out,
        n_expert,
    }
}

fn is_expert(tensor: &Tensor) -> bool {
    tensor.name.ends_with("_exps.weight")
}

/// A mixed file, whose experts are of three types by turns, and a file of the same weights as floats.
struct Files {
    folder: tempfile::TempDir,
    text: PathBuf,
    mixed: PathBuf,
    floats: PathBuf,
}

fn files() -> Files {
    let folder = tempfile::tempdir().unwrap();
    let text = text(folder.path());
    // The carrier has room for the container: its type is the largest.
    let carrier = quantize(folder.path(), "Q8_0", &["--pure"]);
    let sources = ["Q4_K", "Q6_K", "IQ3_S"].map(|ty| {
        let file = std::fs::read(quantize(folder.path(), ty, &["--pure"])).unwrap();
        let table = tensors(&file);
        (file, table)
    });
    let float_file = quantize(
        folder.path(),
        "Q8_0",
        &["--pure", "--tensor-type", "ffn_.*_exps=f32"],
    );
    let mut mixed = std::fs::read(&carrier).unwrap();
    let mut floats = std::fs::read(&float_file).unwrap();
    let float_table = tensors(&floats);
    for (number, tensor) in tensors(&mixed).iter().filter(|t| is_expert(t)).enumerate() {
        let shape = shape(tensor);
        let (n_in, n_out) = (shape.n_in as usize, shape.n_out as usize);
        let of = |e: usize| {
            let (file, table) = &sources[(e + number) % sources.len()];
            let source = table.iter().find(|t| t.name == tensor.name).unwrap();
            let ty = Type::from_id(source.ty).unwrap();
            let bytes = ty.row_bytes(n_in).unwrap() * n_out;
            (ty, &file[source.offset + e * bytes..][..bytes])
        };
        let ids: Vec<u32> = (0..shape.n_expert as usize).map(|e| of(e).0.id()).collect();
        let layout = Layout::new(shape, &ids, block).unwrap();
        let size = Type::Q8_0.row_bytes(n_in).unwrap() * n_out * ids.len();
        assert!(layout.sealed_bytes() <= size as u64);
        let to = &mut mixed[tensor.offset..][..size];
        to.fill(0);
        to[..header_bytes(shape.n_expert) as usize].copy_from_slice(&layout.to_header());
        to[size - SEAL_BYTES as usize..].copy_from_slice(&layout.to_seal(size as u64));
        let float = float_table.iter().find(|t| t.name == tensor.name).unwrap();
        assert_eq!(float.ty, Type::F32.id());
        let mut row = vec![0f32; n_in];
        for (e, place) in layout.experts.iter().enumerate() {
            let (ty, bytes) = of(e);
            to[place.offset as usize..][..bytes.len()].copy_from_slice(bytes);
            for (r, blocks) in bytes.chunks_exact(bytes.len() / n_out).enumerate() {
                dequantize_row(ty, blocks, &mut row).unwrap();
                let at = float.offset + (e * n_out + r) * n_in * 4;
                for (i, value) in row.iter().enumerate() {
                    floats[at + 4 * i..][..4].copy_from_slice(&value.to_le_bytes());
                }
            }
        }
    }
    let (mixed_path, float_path) = (
        folder.path().join("mixed.gguf"),
        folder.path().join("floats.gguf"),
    );
    std::fs::write(&mixed_path, mixed).unwrap();
    std::fs::write(&float_path, floats).unwrap();
    Files {
        folder,
        text,
        mixed: mixed_path,
        floats: float_path,
    }
}

impl Files {
    fn run(&self, model: &Path, plugin: bool, arguments: &[&str]) -> common::Said {
        Perplexity {
            model,
            text: &self.text,
            plugin,
            environment: &[],
            arguments,
        }
        .run()
    }
}

#[test]
fn experts_are_computed_in_their_own_types() {
    let files = files();
    let floats = files.run(&files.floats, false, &[]);
    let expected = floats
        .perplexity
        .unwrap_or_else(|| panic!("{}", floats.text));
    for arguments in [&[][..], &["--load-mode", "none"]] {
        let mixed = files.run(&files.mixed, true, arguments);
        let found = mixed.perplexity.unwrap_or_else(|| panic!("{}", mixed.text));
        eprintln!("mixed {found}, as floats {expected}");
        assert!(
            (found / expected - 1.0).abs() < 0.002,
            "{found} and {expected}"
        );
        let (products, of_mixed) = mixed.computed();
        assert!(
            products > 0 && products == of_mixed,
            "{products} {of_mixed}"
        );
    }
    // The CPU backend takes the container for numbers: what is in it are not the carrier's.
    let without = files.run(&files.mixed, false, &[]);
    assert!(
        !without
            .perplexity
            .is_some_and(|p| (p / expected - 1.0).abs() < 0.5)
    );
}

#[test]
fn damage_is_an_error_before_anything_is_computed() {
    let files = files();
    let whole = std::fs::read(&files.mixed).unwrap();
    let tensor = tensors(&whole)
        .into_iter()
        .filter(is_expert)
        .nth(4)
        .unwrap();
    let shape = shape(&tensor);
    let size = Type::Q8_0.row_bytes(shape.n_in as usize).unwrap()
        * (shape.n_out * shape.n_expert) as usize;
    let seal = size - SEAL_BYTES as usize;
    for (at, what) in [
        (0, "magic"),
        (9, "version"),
        (13, "experts"),
        (50, "checksum"),
        (64, "type"),
        (72, "offset"),
        (seal, "magic of the seal"),
        (seal + 17, "bytes in the seal"),
    ] {
        let mut damaged = whole.clone();
        damaged[tensor.offset + at] ^= 4;
        let path = files.folder.path().join("damaged.gguf");
        std::fs::write(&path, damaged).unwrap();
        for arguments in [&[][..], &["--load-mode", "none"]] {
            let said = files.run(&path, true, arguments);
            assert!(
                said.perplexity.is_none(),
                "{what} {arguments:?}: {}",
                said.text
            );
            assert!(!said.success, "{what} {arguments:?}: {}", said.text);
            assert!(
                said.text.contains(&tensor.name),
                "{what} {arguments:?}: {}",
                said.text
            );
            assert!(
                said.text.contains("no context is made"),
                "{what}: {}",
                said.text
            );
        }
    }
}

/// Random damage of header and seal: never a figure, never a crash.
#[test]
fn random_damage_never_goes_unnoticed() {
    let files = files();
    let whole = std::fs::read(&files.mixed).unwrap();
    let experts: Vec<Tensor> = tensors(&whole).into_iter().filter(is_expert).collect();
    let path = files.folder.path().join("damaged.gguf");
    let mut state = 0x2545_f491_4f6c_dd1du64;
    let mut below = |n: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as usize % n
    };
    for round in 0..20 {
        let tensor = &experts[below(experts.len())];
        let shape = shape(tensor);
        let size = Type::Q8_0.row_bytes(shape.n_in as usize).unwrap()
            * (shape.n_out * shape.n_expert) as usize;
        let header = header_bytes(shape.n_expert) as usize;
        let mut damaged = whole.clone();
        for _ in 0..[1, 1, 3, 30][round % 4] {
            let at = below(header + SEAL_BYTES as usize);
            let at = if at < header {
                at
            } else {
                size - SEAL_BYTES as usize + at - header
            };
            damaged[tensor.offset + at] ^= 1 + below(255) as u8;
        }
        if damaged == whole {
            continue;
        }
        std::fs::write(&path, damaged).unwrap();
        let arguments = [&[][..], &["--load-mode", "none"]][round % 2];
        let said = files.run(&path, true, arguments);
        assert!(
            said.perplexity.is_none() && said.code == Some(1),
            "round {round}: {:?} {}",
            said.code,
            said.text
        );
        assert!(
            said.text.contains(&tensor.name) && said.text.contains("no context is made"),
            "round {round}: {}",
            said.text
        );
    }
}
