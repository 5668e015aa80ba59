//! moqa: quantization of Mixture-of-Experts language models for llama.cpp.
//!
//! The modules read like the pipeline, and data flows one way:
//! [`gguf`] (format; [`hf`] gives Hugging Face folders the form of a GGUF model) → [`model`] (what each tensor
//! is) → [`analysis`] (what the data reaches, through [`runtime`]) → [`plan`] (a type for every tensor) →
//! [`encode`] (the new file) → [`evaluate`] and [`tasks`] → [`report`].
//! Beside it stand what several stages use: [`ggml`] (quantizers), [`metrics`], [`mixed`] (files whose experts
//! have types of their own), [`output`], [`progress`] and [`units`].

pub mod analysis;
pub mod cli;
pub mod encode;
pub mod evaluate;
mod exit;
pub mod ggml;
pub mod gguf;
pub mod hf;
pub mod metrics;
pub mod mixed;
pub mod model;
pub mod output;
pub mod plan;
pub mod progress;
pub mod refit;
pub mod report;
pub mod runtime;
pub mod tasks;
pub mod units;
