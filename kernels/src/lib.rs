//! Matrix multiplications with ggml's quantized weights on CPUs, without ggml.
