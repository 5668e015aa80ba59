//! A safe wrapper on libllama and ggml: load a model, tokenize, evaluate batches, observe chosen graph
//! nodes, and exchange a weight for another encoding of it while the model stays loaded.
//!
//! All `unsafe` that touches llama.cpp lives in this module and in [`crate::ggml`].

mod abort;
mod context;
mod cpu;
mod graph;
mod guard;
mod log;
mod memory_file;
mod model;
mod preset;
mod weights;

pub(crate) use abort::end_on_abort;
pub use context::{Branches, Context, ContextOptions};
pub use cpu::cpu_features_missing;
pub use graph::{Node, Observer};
pub use log::recent_messages;
pub use memory_file::MemoryFile;
pub use model::{Model, ModelOptions, Vocab};
pub use preset::{Preset, preset_types, write_preset};
pub use weights::{AlignedBytes, WeightHandles};

use std::sync::Once;

static INIT: Once = Once::new();

/// Initialises llama.cpp once per process and routes its messages to [`log`].
pub(crate) fn init() {
    INIT.call_once(|| {
        log::install();
        // SAFETY: called once, before any other llama.cpp function.
        unsafe { llama_cpp_sys_2::llama_backend_init() };
    });
}
