//! Writing the quantized model: ggml's own quantizers, row blocks over all threads, output in order.

mod pipeline;
mod write;

pub use pipeline::ordered_parallel;
pub use write::{EncodeOptions, EncodeReport, encode, output_metadata, shard_layouts, simulate};
