// Writes tests/golden.bin: rows of every type with the floats and dot products that ggml gives for them.
//
//   L=path/to/llama.cpp; B=path/to/its/build/bin
//   gcc -O1 -I$L/ggml/include scripts/golden.c -o golden $B/libggml-base.so $B/libggml-cpu.so -lm -Wl,-rpath,$B
//   ./golden tests/golden.bin
//
// Little endian. First u32 N and N floats: the activations. Then for each row u32 type, u32 elements, u32 bytes,
// u32 dots; the bytes; a float for each element, dequantized; then the dot product with the activations if
// dots is 1. Rows with a dot product were quantized by ggml from noise, the others are random bytes.
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ggml-cpu.h"
#include "ggml.h"

enum { N = 512, RANDOM = 256 };

static uint64_t state = 0x9e3779b97f4a7c15u;
static uint32_t next(void) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return state >> 32;
}

// Roughly normal.
static float noise(void) {
    double sum = 0;
    for (int i = 0; i < 12; i++) sum += next() / 4294967296.0;
    return sum - 6;
}

static FILE * out;
static void put32(uint32_t x) { fwrite(&x, 4, 1, out); }

static void row(enum ggml_type type, const uint8_t * bytes, int n, const float * acts) {
    const struct ggml_type_traits * traits = ggml_get_type_traits(type);
    static float floats[N];
    if (type == GGML_TYPE_F32) memcpy(floats, bytes, 4 * n);
    else traits->to_float(bytes, floats, n);
    put32(type);
    put32(n);
    put32(ggml_row_size(type, n));
    put32(acts != NULL);
    fwrite(bytes, ggml_row_size(type, n), 1, out);
    fwrite(floats, 4, n, out);
    if (!acts) return;
    const struct ggml_type_traits_cpu * cpu = ggml_get_type_traits_cpu(type);
    static uint8_t quantized[4 * N];
    const void * other = acts;
    if (cpu->vec_dot_type != GGML_TYPE_F32) {
        ggml_get_type_traits_cpu(cpu->vec_dot_type)->from_float(acts, quantized, n);
        other = quantized;
    }
    float dot;
    cpu->vec_dot(n, &dot, 0, bytes, 0, other, 0, 1);
    fwrite(&dot, 4, 1, out);
}

int main(int argc, char ** argv) {
    out = fopen(argv[argc - 1], "wb");
    ggml_cpu_init();
    static float weights[N], acts[N], importance[N];
    static uint8_t bytes[4 * N];
    for (int i = 0; i < N; i++) {
        acts[i] = noise() + 0.3f;
        importance[i] = 0.5f + next() / 4294967296.0f;
    }
    put32(N);
    fwrite(acts, 4, N, out);
    const enum ggml_type types[] = {
        GGML_TYPE_F32, GGML_TYPE_F16, GGML_TYPE_BF16, GGML_TYPE_Q4_0, GGML_TYPE_Q4_1, GGML_TYPE_Q5_0, GGML_TYPE_Q5_1,
        GGML_TYPE_Q8_0, GGML_TYPE_Q2_K, GGML_TYPE_Q3_K, GGML_TYPE_Q4_K, GGML_TYPE_Q5_K, GGML_TYPE_Q6_K,
        GGML_TYPE_IQ1_S, GGML_TYPE_IQ1_M, GGML_TYPE_IQ2_XXS, GGML_TYPE_IQ2_XS, GGML_TYPE_IQ2_S, GGML_TYPE_IQ3_XXS,
        GGML_TYPE_IQ3_S, GGML_TYPE_IQ4_NL, GGML_TYPE_IQ4_XS, GGML_TYPE_MXFP4, GGML_TYPE_TQ1_0, GGML_TYPE_TQ2_0,
        GGML_TYPE_Q1_0, GGML_TYPE_Q2_0,
    };
    for (size_t t = 0; t < sizeof types / sizeof *types; t++) {
        for (int i = 0; i < N; i++) weights[i] = 0.02f * noise() + 0.01f * (i % 7 == 0);
        ggml_quantize_init(types[t]);
        ggml_quantize_chunk(types[t], weights, bytes, 0, 1, N, importance);
        row(types[t], bytes, N, acts);
        for (size_t i = 0; i < sizeof bytes; i++) bytes[i] = next() >> 13;
        row(types[t], bytes, RANDOM, NULL);
    }
    return fclose(out);
}
