//! ggml's backend ABI (`ggml-backend-impl.h`), as bindgen reads it. The functions are declared and never linked:
//! a backend that is loaded into a host finds the host's own at run time.

#![allow(
    non_camel_case_types,
    non_upper_case_globals,
    non_snake_case,
    unsafe_op_in_unsafe_fn,
    clippy::all,
    rustdoc::all
)]

include!(concat!(env!("OUT_DIR"), "/bindings.rs"));
