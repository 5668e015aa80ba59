//! Writing the quantized model: ggml's own quantizers, row blocks over all threads, output in order.

mod pipeline;
mod refit;
mod rescale;
mod write;

pub use pipeline::ordered_parallel;
pub use refit::Refit;
pub use rescale::{can_rescale, rescale};
pub use write::{
    EncodeOptions, EncodeReport, encode, encode_mixed, output_metadata, shard_layouts, simulate,
};
