// Two contexts of two models on two threads, and many contexts one after another, in one process: logits
// must be the same as of one context alone, and nothing may stay behind.
//
//     contexts MODEL MODEL
//
// MOQA_ROUNDS is how many of the latter.

#include "ggml-backend.h"
#include "llama.h"

#include <dirent.h>
#include <pthread.h>
#include <stdint.h>
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

// The allocator's arenas and the runtime's threads are there after the first rounds.
enum { N_PROMPT = 40, N_MORE = 6, WARM = 20 };

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

// threads of the plugin, by their name
static int n_plugin_threads(void) {
    int n = 0;
    DIR * d = opendir("/proc/self/task");
    for (struct dirent * e = d ? readdir(d) : NULL; e; e = readdir(d)) {
        char path[300], name[64] = "";
        snprintf(path, sizeof(path), "/proc/self/task/%s/comm", e->d_name);
        FILE * f = fopen(path, "r");
        if (f) {
            n += fgets(name, sizeof(name), f) && strncmp(name, "moqa", 4) == 0;
            fclose(f);
        }
    }
    if (d) {
        closedir(d);
    }
    return n;
}

static int n_threads_now(void) {
    int n = 0;
    DIR * d = opendir("/proc/self/task");
    for (struct dirent * e = d ? readdir(d) : NULL; e; e = readdir(d)) {
        n += e->d_name[0] != '.';
    }
    if (d) {
        closedir(d);
    }
    return n;
}

static struct llama_model * load(const char * path) {
    struct llama_model_params params = llama_model_default_params();
    struct llama_model * model = llama_model_load_from_file(path, params);
    CHECK(model, "%s: not loaded", path);
    return model;
}

// FNV-1a over the logits of a prompt and of some tokens after it
static uint64_t evaluate(struct llama_model * model, int n_threads, int seed) {
    struct llama_context_params params = llama_context_default_params();
    params.n_ctx = 128;
    params.n_threads = n_threads;
    params.n_threads_batch = n_threads;
    struct llama_context * ctx = llama_init_from_model(model, params);
    CHECK(ctx, "no context");
    const int n_vocab = llama_vocab_n_tokens(llama_model_get_vocab(model));
    uint64_t hash = 0xcbf29ce484222325u;
    llama_token tokens[N_PROMPT];
    for (int i = 0; i < N_PROMPT; i++) {
        tokens[i] = (i * 97 + seed * 31 + 5) % n_vocab;
    }
    for (int step = 0; step <= N_MORE; step++) {
        CHECK(llama_decode(ctx, llama_batch_get_one(tokens, step ? 1 : N_PROMPT)) == 0, "decode");
        const float * logits = llama_get_logits_ith(ctx, -1);
        CHECK(logits, "no logits");
        int best = 0;
        for (int i = 0; i < n_vocab; i++) {
            uint32_t bits;
            memcpy(&bits, &logits[i], sizeof(bits));
            hash = (hash ^ bits) * 0x100000001b3u;
            if (logits[i] > logits[best]) {
                best = i;
            }
        }
        tokens[0] = best;
    }
    llama_free(ctx);
    return hash;
}

struct work {
    struct llama_model * model;
    int seed;
    uint64_t expected;
    int wrong;
};

static void * evaluate_often(void * data) {
    struct work * work = data;
    for (int i = 0; i < 25; i++) {
        work->wrong += evaluate(work->model, 2, work->seed) != work->expected;
    }
    return NULL;
}

static void quiet(enum ggml_log_level level, const char * text, void * data) {
    (void) data;
    if (level == GGML_LOG_LEVEL_ERROR) {
        fputs(text, stderr);
    }
}

int main(int argc, char ** argv) {
    CHECK(argc == 3, "usage: contexts MODEL MODEL");
    llama_log_set(quiet, NULL);
    ggml_backend_load_all();
    llama_backend_init();
    CHECK(ggml_backend_dev_by_name("MOQA"), "the library is not loaded");

    struct work work[2];
    pthread_t threads[2];
    for (int i = 0; i < 2; i++) {
        work[i].model = load(argv[1 + i]);
        work[i].seed = i;
        work[i].wrong = 0;
        work[i].expected = evaluate(work[i].model, 2, i);
    }
    CHECK(work[0].expected != work[1].expected, "two models with the same logits");
    for (int i = 0; i < 2; i++) {
        CHECK(pthread_create(&threads[i], NULL, evaluate_often, &work[i]) == 0, "pthread_create");
    }
    for (int i = 0; i < 2; i++) {
        pthread_join(threads[i], NULL);
        CHECK(work[i].wrong == 0, "%d of 25 evaluations differ", work[i].wrong);
    }
    // a context of which two threads' contexts share the model
    work[1] = work[0];
    for (int i = 0; i < 2; i++) {
        CHECK(pthread_create(&threads[i], NULL, evaluate_often, &work[i]) == 0, "pthread_create");
    }
    for (int i = 0; i < 2; i++) {
        pthread_join(threads[i], NULL);
        CHECK(work[i].wrong == 0, "%d of 25 evaluations differ", work[i].wrong);
    }
    llama_model_free(work[0].model);

    long before = 0;
    const int at_start = n_threads_now();
    const char * given = getenv("MOQA_ROUNDS");
    const int rounds = given ? atoi(given) : 50;
    CHECK(rounds > WARM, "MOQA_ROUNDS must be above %d", WARM);
    for (int i = 0; i < rounds; i++) {
        struct llama_model * model = load(argv[1]);
        CHECK(evaluate(model, 2, 0) == work[0].expected, "round %d: other logits", i);
        llama_model_free(model);
        if (i == WARM - 1) {
            before = resident_kb();
        }
    }
    const long grown = resident_kb() - before;
    CHECK(n_plugin_threads() == 0, "%d threads stay behind", n_plugin_threads());
    CHECK(n_threads_now() <= at_start, "%d threads, %d before", n_threads_now(), at_start);
    CHECK(grown < 4096, "%ld KiB more after %d rounds", grown, rounds - WARM);
    printf("ok: %d KiB at the start and %ld KiB more after %d rounds\n", (int) before, grown, rounds - WARM);
    return 0;
}
