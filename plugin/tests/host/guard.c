// A host that may have a GPU: registers a device of that type, which does nothing, and then loads the library.
//
//     guard gpu|cpu LIBRARY
//
// Says whether the library takes a dense product.

#include "ggml.h"
#include "ggml-alloc.h"
#include "ggml-backend-impl.h"
#include "ggml-backend.h"

#include <stdio.h>
#include <string.h>

static const char * reg_name(ggml_backend_reg_t reg) {
    (void) reg;
    return "Pretended";
}

static const char * device_name(ggml_backend_dev_t device) {
    (void) device;
    return "Pretended0";
}

static enum ggml_backend_dev_type device_type(ggml_backend_dev_t device) {
    (void) device;
    return GGML_BACKEND_DEVICE_TYPE_GPU;
}

static struct ggml_backend_device device;

static size_t n_devices(ggml_backend_reg_t reg) {
    (void) reg;
    return 1;
}

static ggml_backend_dev_t get_device(ggml_backend_reg_t reg, size_t index) {
    (void) reg;
    (void) index;
    return &device;
}

static struct ggml_backend_reg reg = {
    .api_version = GGML_BACKEND_API_VERSION,
    .iface = { .get_name = reg_name, .get_device_count = n_devices, .get_device = get_device },
};

int main(int argc, char ** argv) {
    if (argc != 3) {
        return 2;
    }
    if (strcmp(argv[1], "gpu") == 0) {
        device.iface.get_name = device_name;
        device.iface.get_description = device_name;
        device.iface.get_type = device_type;
        device.reg = &reg;
        ggml_backend_register(&reg);
        if (!ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_GPU)) {
            fprintf(stderr, "the device is not registered\n");
            return 1;
        }
    }
    ggml_backend_reg_t library = ggml_backend_load(argv[2]);
    if (!library) {
        return 3;
    }
    ggml_backend_dev_t ours = ggml_backend_reg_dev_get(library, 0);
    struct ggml_init_params params = { ggml_tensor_overhead() * 4, NULL, true };
    struct ggml_context * ctx = ggml_init(params);
    struct ggml_tensor * w = ggml_new_tensor_2d(ctx, GGML_TYPE_Q4_K, 256, 8);
    ggml_set_name(w, "output.weight");
    struct ggml_tensor * y = ggml_mul_mat(ctx, w, ggml_new_tensor_2d(ctx, GGML_TYPE_F32, 256, 2));
    ggml_backend_buffer_t buffer = ggml_backend_alloc_ctx_tensors_from_buft(ctx, ggml_backend_dev_buffer_type(ours));
    if (!buffer) {
        return 4;
    }
    printf("dense: %s\n", ggml_backend_dev_supports_op(ours, y) ? "taken" : "left");
    ggml_backend_buffer_free(buffer);
    ggml_free(ctx);
    return 0;
}
