//! moqa: quantization of Mixture-of-Experts language models for llama.cpp.
//!
//! The modules read like the pipeline, and data flows one way:
//! [`gguf`] (format) → [`model`] (what each tensor is) → [`analysis`] (what the data reaches, through
//! [`runtime`]) → [`plan`] (a type for every tensor) → [`encode`] (the new file) → [`evaluate`].

pub mod analysis;
pub mod cli;
pub mod encode;
pub mod evaluate;
pub mod gguf;
pub mod model;
pub mod plan;
pub mod runtime;
