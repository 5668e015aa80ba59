// A host that may have a GPU: registers a device of that type, which does nothing, and then loads the library.
//
//     guard gpu|cpu LIBRARY

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
    return ggml_backend_load(argv[2]) ? 0 : 3;
}
