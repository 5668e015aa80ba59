use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Result, ensure};
use clap::Args;
use serde::Serialize;

use super::{Global, steps};
use crate::analysis::{Analysis, Importance, Unreached};
use crate::encode::{EncodeOptions, EncodeReport, encode, output_metadata};
use crate::ggml;
use crate::gguf::{GgmlType, Gguf};
use crate::mixed;
use crate::output::{check_writable, refuse_overwriting};

/// Make a stock GGUF of a mixed file, for any llama.cpp without the plugin
///
/// Experts that have types of their own are decoded to floats (f16 by default, as moqa simulate writes them, since
/// every llama.cpp device multiplies by it and it keeps three bits more of each value than bf16), or quantized to
/// one type. Everything else stays as it is.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  moqa unpack small.gguf -o plain.gguf\n  moqa unpack small.gguf -o plain.gguf --as q4_K"
)]
pub(super) struct UnpackArgs {
    /// The mixed file (of a split model the first file)
    model: PathBuf,
    /// The file to write
    #[arg(long, short, value_name = "FILE")]
    output: PathBuf,
    /// Type of the tensors whose experts have types of their own
    #[arg(long = "as", value_name = "TYPE", default_value = "f16")]
    ty: GgmlType,
    /// Importance data for --as with a quantized type: llama.cpp imatrix files
    #[arg(long, value_name = "FILE")]
    imatrix: Vec<PathBuf>,
    /// Write shards of at most this size
    #[arg(long, value_name = "SIZE", value_parser = crate::units::parse_bytes)]
    split_max_size: Option<u64>,
}

#[derive(Serialize)]
struct Outcome<'a> {
    written: &'a EncodeReport,
    unpacked: usize,
}

pub(super) fn run(args: UnpackArgs, global: &Global) -> Result<()> {
    let gguf = Gguf::open(&args.model)?;
    let shown = args.model.display();
    ensure!(
        mixed::is_guarded(&gguf.metadata),
        "{shown}: is a stock file already; there is nothing to unpack"
    );
    refuse_overwriting(&args.output, gguf.paths())?;
    check_writable(&args.output)?;
    ensure!(
        ggml::can_encode(args.ty),
        "--as {}: ggml cannot quantize to it",
        args.ty
    );
    let names: Vec<String> = mixed::mixed_tensors(&gguf)?
        .iter()
        .map(|t| gguf.tensors[t.index].name.clone())
        .collect();
    let is_float = matches!(args.ty, GgmlType::F32 | GgmlType::F16 | GgmlType::BF16);
    let source = mixed::plain(gguf, if is_float { args.ty } else { GgmlType::F32 })?;
    let mut analysis = Analysis::default();
    for path in &args.imatrix {
        steps::add_imatrix(&mut analysis, path, &source, &global.progress())?;
    }
    let importance = Importance::new(&analysis, Unreached::default());
    for name in &names {
        let Some(tensor) = source.tensor(name) else {
            continue;
        };
        ensure!(
            args.ty.row_bytes(tensor.ne(0)).is_some(),
            "{shown}: tensor {name}: rows of {} values do not fill {}'s blocks of {}; choose another type with --as",
            tensor.ne(0),
            args.ty,
            args.ty.block_elems()
        );
        ensure!(
            !ggml::requires_importance(args.ty)
                || importance.of(name, 0, tensor.ne(0) as usize).is_some(),
            "{shown}: tensor {name}: type {} needs importance data; give it with --imatrix, or choose another type with --as",
            args.ty
        );
    }
    let types: BTreeMap<String, GgmlType> = names.iter().map(|n| (n.clone(), args.ty)).collect();
    let metadata = output_metadata(&source, &types, &[]);
    let options = EncodeOptions {
        n_threads: global.n_threads(),
        split_max_bytes: args.split_max_size,
    };
    let written = encode(
        &source,
        &metadata,
        &types,
        &importance,
        &args.output,
        &options,
        &global.progress(),
    )?;
    let outcome = Outcome {
        written: &written,
        unpacked: names.len(),
    };
    global.print(&outcome, || {
        steps::wrote(&written) + &format!("{} tensors unpacked to {}\n", names.len(), args.ty)
    })
}
