// A host whose ggml is opened with RTLD_LOCAL, as Python opens extension modules, or that has none.
//
//     local libggml.so|none LIBRARY [libllama.so]
//
// With a third argument libllama is opened before ggml, as llama-cpp-python does. Exits with 0 if the backend registers, and 3 if it declines.

#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

typedef void * (*load_t)(const char *);
typedef int (*score_t)(void);
typedef void * (*init_t)(void);

int main(int argc, char ** argv) {
    if (argc != 3 && argc != 4) {
        return 2;
    }
    if (argc == 4 && !dlopen(argv[3], RTLD_NOW | RTLD_LOCAL)) {
        fprintf(stderr, "%s\n", dlerror());
        return 1;
    }
    if (strcmp(argv[1], "none") != 0) {
        void * ggml = dlopen(argv[1], RTLD_NOW | RTLD_LOCAL);
        if (!ggml) {
            fprintf(stderr, "%s\n", dlerror());
            return 1;
        }
        if (dlsym(RTLD_DEFAULT, "ggml_backend_load")) {
            fprintf(stderr, "ggml is in the global scope\n");
            return 1;
        }
        load_t load = (load_t) dlsym(ggml, "ggml_backend_load");
        return load && load(argv[2]) ? 0 : 3;
    }
    void * library = dlopen(argv[2], RTLD_NOW | RTLD_LOCAL);
    if (!library) {
        fprintf(stderr, "%s\n", dlerror());
        return 1;
    }
    score_t score = (score_t) dlsym(library, "ggml_backend_score");
    init_t init = (init_t) dlsym(library, "ggml_backend_init");
    if (!score || !init) {
        return 1;
    }
    return score() == 0 && init() == NULL ? 3 : 0;
}
