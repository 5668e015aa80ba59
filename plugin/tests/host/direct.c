// Drives the backend through ggml's public functions, without llama.cpp and without the CPU backend:
// products against sums over dequantized weights, bad expert numbers, damaged containers, and what a
// thousand rounds leave behind. Needs libggml and libggml-base only.
//
//     direct LIBRARY

#include "ggml.h"
#include "ggml-alloc.h"
#include "ggml-backend.h"

#include <dirent.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define CHECK(ok, ...) \
    do { \
        if (!(ok)) { \
            fprintf(stderr, "%s:%d: ", __FILE__, __LINE__); \
            fprintf(stderr, __VA_ARGS__); \
            fprintf(stderr, "\n"); \
            exit(1); \
        } \
    } while (0)

enum { N_IN = 256, N_OUT = 37, N_EXPERT = 5, N_USED = 3, N_TOKENS = 9 };

static unsigned state = 1;

static float next_float(void) {
    state = state * 1664525u + 1013904223u;
    return (float) (state >> 8) / 8388608.0f - 1.0f;
}

typedef void (*set_n_threads_t)(ggml_backend_t, int);

static long resident_kb(void) {
    long total = 0, resident = 0;
    FILE * f = fopen("/proc/self/statm", "r");
    if (f) {
        if (fscanf(f, "%ld %ld", &total, &resident) != 2) {
            resident = 0;
        }
        fclose(f);
    }
    return resident * (sysconf(_SC_PAGESIZE) / 1024);
}

static int n_threads_now(void) {
    int n = 0;
    DIR * d = opendir("/proc/self/task");
    while (d && readdir(d)) {
        n++;
    }
    if (d) {
        closedir(d);
    }
    return n - 2;
}

// Gated linear units of products, in one graph with them: against ggml's formulas over the graph's own products.
static void gated_units(ggml_backend_dev_t dev, ggml_backend_t backend, struct ggml_tensor * w, struct ggml_tensor * x, struct ggml_tensor * ids) {
    struct ggml_init_params params = { ggml_tensor_overhead() * 64 + ggml_graph_overhead(), NULL, true };
    struct ggml_context * ctx = ggml_init(params);
    struct ggml_tensor * gate = ggml_mul_mat_id(ctx, w, x, ids);
    struct ggml_tensor * up = ggml_mul_mat_id(ctx, w, ggml_view_3d(ctx, x, N_IN, 1, N_TOKENS, x->nb[1], x->nb[2], x->nb[1]), ids);
    // gate and up in one row, as a fused tensor gives them: 18 values each
    struct ggml_tensor * left = ggml_view_3d(ctx, gate, 18, N_USED, N_TOKENS, gate->nb[1], gate->nb[2], 0);
    struct ggml_tensor * right = ggml_view_3d(ctx, gate, 18, N_USED, N_TOKENS, gate->nb[1], gate->nb[2], 18 * sizeof(float));
    struct ggml_tensor * whole = ggml_view_3d(ctx, gate, 36, N_USED, N_TOKENS, gate->nb[1], gate->nb[2], 0);
    struct ggml_tensor * nodes[] = {
        ggml_swiglu_split(ctx, gate, up),
        ggml_geglu_split(ctx, gate, up),
        ggml_reglu_split(ctx, gate, up),
        ggml_geglu_quick_split(ctx, gate, up),
        ggml_swiglu_oai(ctx, gate, up, 1.702f, 1.5f),
        ggml_swiglu_split(ctx, left, right),
        ggml_swiglu(ctx, whole),
        ggml_swiglu_swapped(ctx, whole),
    };
    enum { N = sizeof(nodes) / sizeof(nodes[0]) };
    struct ggml_cgraph * graph = ggml_new_graph(ctx);
    for (int i = 0; i < N; i++) {
        CHECK(ggml_backend_dev_supports_op(dev, nodes[i]), "GLU %d is not taken", i);
        ggml_build_forward_expand(graph, nodes[i]);
    }
    CHECK(!ggml_backend_dev_supports_op(dev, ggml_geglu_erf_split(ctx, gate, up)), "GEGLU_ERF is taken");
    CHECK(!ggml_backend_dev_supports_op(dev, ggml_swiglu_split(ctx, x, x)), "GLU of no products is taken");
    ggml_backend_buffer_t buffer = ggml_backend_alloc_ctx_tensors_from_buft(ctx, ggml_backend_dev_buffer_type(dev));
    CHECK(buffer, "no buffer for activations");
    CHECK(ggml_backend_graph_compute(backend, graph) == GGML_STATUS_SUCCESS, "graph of GLU");
    for (int n = 0; n < N; n++) {
        const int width = (int) nodes[n]->ne[0];
        for (int row = 0; row < N_USED * N_TOKENS; row++) {
            const float * g = (const float *) gate->data + row * N_OUT;
            const float * u = n < 5 ? (const float *) up->data + row * N_OUT : g + 18;
            if (n == 7) {
                u = g;
                g += 18;
            }
            const float * found = (const float *) nodes[n]->data + row * width;
            for (int i = 0; i < width; i++) {
                double a = g[i], b = u[i], expected;
                if (n == 1) {
                    expected = 0.5 * a * (1 + tanh(sqrt(2 / 3.14159265358979323846) * a * (1 + 0.044715 * a * a))) * b;
                } else if (n == 2) {
                    expected = a > 0 ? a * b : 0;
                } else if (n == 3) {
                    expected = a / (1 + exp(-1.702 * a)) * b;
                } else if (n == 4) {
                    a = a < 1.5 ? a : 1.5;
                    b = b < -1.5 ? -1.5 : b > 1.5 ? 1.5 : b;
                    expected = a / (1 + exp(-1.702 * a)) * (b + 1);
                } else {
                    expected = a / (1 + exp(-a)) * b;
                }
                CHECK(fabs(found[i] - expected) <= 1e-5 * fabs(expected) + 1e-6, "GLU %d, row %d: %g for %g", n, row, found[i], expected);
            }
        }
    }
    ggml_backend_buffer_free(buffer);
    ggml_free(ctx);
}

// A layer's nodes in memory that is used again, as llama.cpp's allocator does: `later` over gate and up (`over` 2) or over
// gate alone (1), its product with weights over itself; or all apart (0). Results have the same bits.
static void memory_used_again(ggml_backend_dev_t dev, ggml_backend_t backend, struct ggml_tensor * w, struct ggml_tensor * x, struct ggml_tensor * ids) {
    enum { VALUES = N_OUT * N_USED * N_TOKENS };
    static float first[2][VALUES];
    for (int over = 0; over < 3; over++) {
        struct ggml_init_params params = { ggml_tensor_overhead() * 64 + ggml_graph_overhead(), NULL, true };
        struct ggml_context * ctx = ggml_init(params);
        struct ggml_tensor * gate = ggml_mul_mat_id(ctx, w, x, ids);
        struct ggml_tensor * up = ggml_mul_mat_id(ctx, w, ggml_view_3d(ctx, x, N_IN, 1, N_TOKENS, x->nb[1], x->nb[2], x->nb[1]), ids);
        struct ggml_tensor * unit = ggml_swiglu_split(ctx, gate, up);
        struct ggml_tensor * later = ggml_mul_mat_id(ctx, w, x, ids);
        struct ggml_tensor * weights = ggml_new_tensor_3d(ctx, GGML_TYPE_F32, 1, N_USED, N_TOKENS);
        struct ggml_tensor * weighted = ggml_mul(ctx, later, weights);
        CHECK(ggml_backend_dev_supports_op(dev, weighted), "weighting is not taken");
        CHECK(!ggml_backend_dev_supports_op(dev, ggml_mul(ctx, later, later)), "MUL of values is taken");
        CHECK(!ggml_backend_dev_supports_op(dev, ggml_mul(ctx, x, weights)), "MUL of no product is taken");

        const size_t size = ggml_nbytes(gate), place = (size + 127) / 64 * 64;
        ggml_backend_buffer_t buffer = ggml_backend_buft_alloc_buffer(ggml_backend_dev_buffer_type(dev), 8 * place);
        CHECK(buffer, "no buffer for activations");
        char * base = ggml_backend_buffer_get_base(buffer);
        memset(base, 0x55, 8 * place);
        char * at = over == 2 ? base + place / 128 * 64 : over == 1 ? base : base + 4 * place;
        struct { struct ggml_tensor * tensor; char * at; } places[] = {
            { gate, base }, { up, base + place }, { unit, base + 2 * place }, { weights, base + 3 * place },
            { later, at }, { weighted, over ? at : base + 6 * place },
        };
        for (int i = 0; i < 6; i++) {
            CHECK(ggml_backend_tensor_alloc(buffer, places[i].tensor, places[i].at) == GGML_STATUS_SUCCESS, "not placed");
        }
        for (int i = 0; i < N_USED * N_TOKENS; i++) {
            ((float *) weights->data)[i] = 1.0f / (float) (i + 3);
        }
        struct ggml_cgraph * graph = ggml_new_graph(ctx);
        ggml_build_forward_expand(graph, unit);
        ggml_build_forward_expand(graph, weighted);
        CHECK(ggml_backend_graph_compute(backend, graph) == GGML_STATUS_SUCCESS, "graph of a layer");
        const float * results[] = { unit->data, weighted->data };
        if (!over) {
            memcpy(first[0], results[0], size);
            memcpy(first[1], results[1], size);
            for (int i = 0; i < VALUES; i++) {
                const float weight = ((const float *) weights->data)[i / N_OUT];
                CHECK(results[1][i] == ((const float *) later->data)[i] * weight, "weighted value %d", i);
                const double a = ((const float *) gate->data)[i], b = ((const float *) up->data)[i];
                const double expected = a / (1 + exp(-a)) * b;
                CHECK(fabs(results[0][i] - expected) <= 1e-5 * fabs(expected) + 1e-6, "value %d of the unit", i);
            }
        }
        for (int i = 0; i < 2; i++) {
            CHECK(memcmp(first[i], results[i], size) == 0, "other results %d where memory is used again (%d)", i, over);
        }
        // Where something is written over both, they need not be.
        unsigned char untouched[64];
        memset(untouched, 0x55, sizeof(untouched));
        CHECK((memcmp(gate->data, untouched, 64) == 0) == (over == 2), "gate (%d)", over);
        CHECK(over == 2 || memcmp(up->data, untouched, 64) != 0, "up (%d)", over);
        ggml_backend_buffer_free(buffer);
        ggml_free(ctx);
    }
}

static void round_of(ggml_backend_dev_t dev, set_n_threads_t set_n_threads, enum ggml_type type, int threads, int mapped) {
    ggml_backend_t backend = ggml_backend_dev_init(dev, NULL);
    CHECK(backend, "no stream");
    set_n_threads(backend, threads);

    struct ggml_init_params params = { ggml_tensor_overhead() * 64 + ggml_graph_overhead() * 4, NULL, true };
    struct ggml_context * weights = ggml_init(params);
    struct ggml_context * ctx = ggml_init(params);
    struct ggml_tensor * w = ggml_new_tensor_3d(weights, type, N_IN, N_OUT, N_EXPERT);
    ggml_set_name(w, "blk.0.ffn_up_exps.weight");

    // weights
    float * values = malloc(sizeof(float) * N_IN * N_OUT * N_EXPERT);
    for (int i = 0; i < N_IN * N_OUT * N_EXPERT; i++) {
        values[i] = next_float();
    }
    void * bytes = aligned_alloc(64, (ggml_nbytes(w) + 63) / 64 * 64);
    ggml_quantize_chunk(type, values, bytes, 0, N_OUT * N_EXPERT, N_IN, NULL);
    ggml_get_type_traits(type)->to_float(bytes, values, N_IN * N_OUT * N_EXPERT);

    ggml_backend_buffer_type_t buft = ggml_backend_dev_buffer_type(dev);
    ggml_backend_buffer_t weight_buffer;
    if (mapped) {
        weight_buffer = ggml_backend_dev_buffer_from_host_ptr(dev, bytes, ggml_nbytes(w), ggml_nbytes(w));
        CHECK(weight_buffer, "no buffer over memory");
        CHECK(ggml_backend_tensor_alloc(weight_buffer, w, bytes) == GGML_STATUS_SUCCESS, "not placed");
    } else {
        weight_buffer = ggml_backend_alloc_ctx_tensors_from_buft(weights, buft);
        CHECK(weight_buffer, "no buffer");
        ggml_backend_tensor_set(w, bytes, 0, ggml_nbytes(w));
        void * back = malloc(ggml_nbytes(w));
        ggml_backend_tensor_get(w, back, 0, ggml_nbytes(w));
        CHECK(memcmp(back, bytes, ggml_nbytes(w)) == 0, "weights came back as others");
        free(back);
    }
    CHECK(ggml_backend_buffer_is_host(weight_buffer), "not visible to the host");
    CHECK(strcmp(ggml_backend_buffer_name(weight_buffer), "MOQA") == 0, "name");
    ggml_backend_buffer_set_usage(weight_buffer, GGML_BACKEND_BUFFER_USAGE_WEIGHTS);

    // x has three slots for each token in a wider tensor; ids are a view of all experts, sorted
    struct ggml_tensor * wide = ggml_new_tensor_3d(ctx, GGML_TYPE_F32, N_IN + 16, N_USED, N_TOKENS);
    struct ggml_tensor * x = ggml_view_3d(ctx, wide, N_IN, N_USED, N_TOKENS, wide->nb[1], wide->nb[2], 0);
    struct ggml_tensor * all = ggml_new_tensor_2d(ctx, GGML_TYPE_I32, N_EXPERT, N_TOKENS);
    struct ggml_tensor * ids = ggml_view_2d(ctx, all, N_USED, N_TOKENS, all->nb[1], 0);
    struct ggml_tensor * y = ggml_mul_mat_id(ctx, w, x, ids);
    struct ggml_tensor * added = ggml_add(ctx, y, y);
    CHECK(ggml_backend_dev_supports_op(dev, y), "the product is not taken");
    CHECK(ggml_backend_dev_supports_op(dev, w) && ggml_backend_dev_supports_op(dev, ids), "NONE or VIEW");
    CHECK(!ggml_backend_dev_supports_op(dev, added), "ADD is taken");
    ggml_backend_buffer_t buffer = ggml_backend_alloc_ctx_tensors_from_buft(ctx, buft);
    CHECK(buffer, "no buffer for activations");

    float * xs = malloc(ggml_nbytes(wide));
    for (size_t i = 0; i < ggml_nbytes(wide) / sizeof(float); i++) {
        xs[i] = next_float();
    }
    ggml_backend_tensor_set(wide, xs, 0, ggml_nbytes(wide));
    int32_t numbers[N_EXPERT * N_TOKENS];
    for (int i = 0; i < N_EXPERT * N_TOKENS; i++) {
        // numbers behind the view are never to be read
        numbers[i] = i % N_EXPERT < N_USED ? (i * 7 + i / N_EXPERT) % N_EXPERT : -12345;
    }
    ggml_backend_tensor_set(all, numbers, 0, sizeof(numbers));

    struct ggml_cgraph * graph = ggml_new_graph(ctx);
    ggml_build_forward_expand(graph, y);
    CHECK(ggml_backend_graph_compute(backend, graph) == GGML_STATUS_SUCCESS, "graph");
    float * found = malloc(ggml_nbytes(y));
    ggml_backend_tensor_get(y, found, 0, ggml_nbytes(y));
    for (int t = 0; t < N_TOKENS; t++) {
        for (int s = 0; s < N_USED; s++) {
            const float * a = xs + (t * N_USED + s) * (N_IN + 16);
            const float * e = values + (size_t) numbers[t * N_EXPERT + s] * N_IN * N_OUT;
            for (int r = 0; r < N_OUT; r++) {
                double sum = 0, size = 0;
                for (int i = 0; i < N_IN; i++) {
                    sum += (double) a[i] * e[r * N_IN + i];
                    size += fabs((double) a[i] * e[r * N_IN + i]);
                }
                const double error = fabs(sum - found[(t * N_USED + s) * N_OUT + r]);
                CHECK(error <= 0.01 * size, "%s: token %d slot %d row %d: error %g of %g", ggml_type_name(type), t, s, r, error, size);
            }
        }
    }

    gated_units(dev, backend, w, x, ids);
    memory_used_again(dev, backend, w, x, ids);

    // an expert that there is not
    const int32_t bad[] = { -1, N_EXPERT, 1 << 30 };
    for (int i = 0; i < 3; i++) {
        ggml_backend_tensor_set(all, &bad[i], sizeof(int32_t), sizeof(int32_t));
        CHECK(ggml_backend_graph_compute(backend, graph) == GGML_STATUS_FAILED, "expert %d", bad[i]);
    }

    free(found);
    free(xs);
    ggml_backend_free(backend);
    ggml_backend_buffer_free(buffer);
    ggml_backend_buffer_free(weight_buffer);
    ggml_free(ctx);
    ggml_free(weights);
    free(bytes);
    free(values);
}

// Weight matrices that are not of experts: taken as MOQA_DENSE says, by name, shape and type; products against sums.
static void dense(ggml_backend_dev_t dev, set_n_threads_t set_n_threads, enum ggml_type type, int threads) {
    const char * wanted = getenv("MOQA_DENSE");
    const int taken = !wanted || strcmp(wanted, "0") != 0;
    ggml_backend_t backend = ggml_backend_dev_init(dev, NULL);
    CHECK(backend, "no stream");
    set_n_threads(backend, threads);
    struct ggml_init_params params = { ggml_tensor_overhead() * 32 + ggml_graph_overhead(), NULL, true };
    struct ggml_context * ctx = ggml_init(params);
    struct ggml_tensor * w = ggml_new_tensor_2d(ctx, type, N_IN, N_OUT);
    struct ggml_tensor * adapter = ggml_new_tensor_2d(ctx, type, N_IN, N_OUT);
    struct ggml_tensor * floats = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, N_IN, N_OUT);
    struct ggml_tensor * heads = ggml_new_tensor_3d(ctx, type, N_IN, N_OUT, 2);
    ggml_set_name(w, "blk.0.attn_q.weight");
    ggml_set_name(adapter, "blk.0.attn_q.weight.lora_a");
    ggml_set_name(floats, "blk.0.ffn_gate_inp.weight");
    ggml_set_name(heads, "blk.0.attn_k_b.weight");
    struct ggml_tensor * x = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, N_IN, N_TOKENS);
    struct ggml_tensor * many = ggml_new_tensor_3d(ctx, GGML_TYPE_F32, N_IN, N_TOKENS, 2);
    struct ggml_tensor * y = ggml_mul_mat(ctx, w, x);
    struct ggml_tensor * unit = ggml_swiglu_split(ctx, y, ggml_mul_mat(ctx, w, x));
    struct ggml_tensor * others[] = { ggml_mul_mat(ctx, adapter, x), ggml_mul_mat(ctx, floats, x), ggml_mul_mat(ctx, heads, many) };
    ggml_backend_buffer_t buffer = ggml_backend_alloc_ctx_tensors_from_buft(ctx, ggml_backend_dev_buffer_type(dev));
    CHECK(buffer, "no buffer");
    CHECK(ggml_backend_dev_supports_op(dev, y) == taken, "%s: dense, MOQA_DENSE=%s", ggml_type_name(type), wanted ? wanted : "");
    CHECK(ggml_backend_dev_supports_op(dev, unit) == taken, "GLU of dense products");
    for (int i = 0; i < 3; i++) {
        CHECK(!ggml_backend_dev_supports_op(dev, others[i]), "product %d is taken", i);
    }
    if (taken) {
        float * values = malloc(sizeof(float) * N_IN * N_OUT);
        for (int i = 0; i < N_IN * N_OUT; i++) {
            values[i] = next_float();
        }
        void * bytes = malloc(ggml_nbytes(w));
        ggml_quantize_chunk(type, values, bytes, 0, N_OUT, N_IN, NULL);
        ggml_get_type_traits(type)->to_float(bytes, values, N_IN * N_OUT);
        ggml_backend_tensor_set(w, bytes, 0, ggml_nbytes(w));
        float xs[N_IN * N_TOKENS];
        for (int i = 0; i < N_IN * N_TOKENS; i++) {
            xs[i] = next_float();
        }
        ggml_backend_tensor_set(x, xs, 0, sizeof(xs));
        struct ggml_cgraph * graph = ggml_new_graph(ctx);
        ggml_build_forward_expand(graph, y);
        CHECK(ggml_backend_graph_compute(backend, graph) == GGML_STATUS_SUCCESS, "graph of a dense product");
        const float * found = (const float *) y->data;
        for (int t = 0; t < N_TOKENS; t++) {
            for (int r = 0; r < N_OUT; r++) {
                double sum = 0, size = 0;
                for (int i = 0; i < N_IN; i++) {
                    sum += (double) xs[t * N_IN + i] * values[r * N_IN + i];
                    size += fabs((double) xs[t * N_IN + i] * values[r * N_IN + i]);
                }
                const double error = fabs(sum - found[t * N_OUT + r]);
                CHECK(error <= 0.01 * size, "dense %s: token %d row %d: error %g of %g", ggml_type_name(type), t, r, error, size);
            }
        }
        free(bytes);
        free(values);
    }
    ggml_backend_free(backend);
    ggml_backend_buffer_free(buffer);
    ggml_free(ctx);
}

// Half a container: a stream is refused while it is loaded, and computing with an existing one fails.
static void damaged(ggml_backend_dev_t dev) {
    ggml_backend_t backend = ggml_backend_dev_init(dev, NULL);
    struct ggml_init_params params = { ggml_tensor_overhead() * 16 + ggml_graph_overhead(), NULL, true };
    struct ggml_context * ctx = ggml_init(params);
    struct ggml_tensor * w = ggml_new_tensor_3d(ctx, GGML_TYPE_Q8_0, N_IN, N_OUT, N_EXPERT);
    ggml_set_name(w, "blk.3.ffn_down_exps.weight");
    struct ggml_tensor * x = ggml_new_tensor_3d(ctx, GGML_TYPE_F32, N_IN, 1, 1);
    struct ggml_tensor * ids = ggml_new_tensor_2d(ctx, GGML_TYPE_I32, 1, 1);
    struct ggml_tensor * y = ggml_mul_mat_id(ctx, w, x, ids);
    ggml_backend_buffer_t buffer = ggml_backend_alloc_ctx_tensors_from_buft(ctx, ggml_backend_dev_buffer_type(dev));
    ggml_backend_buffer_clear(buffer, 0);
    struct ggml_cgraph * graph = ggml_new_graph(ctx);
    ggml_build_forward_expand(graph, y);
    CHECK(ggml_backend_graph_compute(backend, graph) == GGML_STATUS_SUCCESS, "zeros");
    ggml_backend_tensor_set(w, "MOQAMIX1", 0, 8);
    CHECK(ggml_backend_graph_compute(backend, graph) == GGML_STATUS_FAILED, "a header alone");
    CHECK(ggml_backend_dev_init(dev, NULL) == NULL, "a stream in spite of damage");
    ggml_backend_tensor_memset(w, 0, 0, 8);
    CHECK(ggml_backend_graph_compute(backend, graph) == GGML_STATUS_SUCCESS, "zeros again");
    ggml_backend_tensor_set(w, "1XIMAQOM", ggml_nbytes(w) - 64, 8);
    CHECK(ggml_backend_graph_compute(backend, graph) == GGML_STATUS_FAILED, "a seal alone");
    ggml_backend_buffer_free(buffer);
    ggml_backend_free(backend);
    ggml_free(ctx);
    ggml_backend_t after = ggml_backend_dev_init(dev, NULL);
    CHECK(after, "no stream although the damaged tensor is gone");
    ggml_backend_free(after);
}

int main(int argc, char ** argv) {
    CHECK(argc == 2, "usage: direct LIBRARY");
    ggml_backend_reg_t reg = ggml_backend_load(argv[1]);
    CHECK(reg, "not loaded");
    CHECK(ggml_backend_reg_dev_count(reg) == 1, "devices");
    ggml_backend_dev_t dev = ggml_backend_reg_dev_get(reg, 0);
    CHECK(ggml_backend_dev_type(dev) == GGML_BACKEND_DEVICE_TYPE_ACCEL, "type of device");
    struct ggml_backend_dev_props props;
    ggml_backend_dev_get_props(dev, &props);
    CHECK(props.caps.buffer_from_host_ptr && !props.caps.async && strcmp(props.name, "MOQA") == 0, "properties");
    set_n_threads_t set_n_threads = (set_n_threads_t) ggml_backend_reg_get_proc_address(reg, "ggml_backend_set_n_threads");
    CHECK(set_n_threads, "no ggml_backend_set_n_threads");

    const enum ggml_type types[] = { GGML_TYPE_Q8_0, GGML_TYPE_Q4_K, GGML_TYPE_Q6_K, GGML_TYPE_Q4_0 };
    for (int i = 0; i < 16; i++) {
        round_of(dev, set_n_threads, types[i % 4], 1 + i / 4, i % 2);
    }
    for (int i = 0; i < 8; i++) {
        dense(dev, set_n_threads, types[i % 4], 1 + i / 4);
    }
    damaged(dev);
    const long before = resident_kb();
    const int threads = n_threads_now();
    for (int i = 0; i < 300; i++) {
        round_of(dev, set_n_threads, types[i % 4], 1 + i % 3, i / 4 % 2);
    }
    const long grown = resident_kb() - before;
    CHECK(n_threads_now() == threads, "%d threads, %d before", n_threads_now(), threads);
    CHECK(grown < 4096, "%ld KiB more after 300 rounds", grown);
    printf("ok: %ld KiB more after 300 rounds\n", grown);
    return 0;
}
