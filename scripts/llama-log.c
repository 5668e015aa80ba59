// Preloaded into llama.cpp's programs, so that what they say at the end is said.
//
// They write their log from a thread that nobody waits for (common_log_main in llama.cpp's common/log.cpp): on a busy
// machine a program ends before its last lines, the figures of llama-perplexity, are written. At the end of main they
// call llama_backend_free; here it waits until no other thread wants the processor.

#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static bool others_are_at_work(void) {
    DIR * tasks = opendir("/proc/self/task");
    if (!tasks) {
        return false;
    }
    bool found = false;
    for (struct dirent * entry; (entry = readdir(tasks)) && !found;) {
        char path[300], line[512] = "";
        if (entry->d_name[0] == '.' || atoi(entry->d_name) == gettid()) {
            continue;
        }
        snprintf(path, sizeof path, "/proc/self/task/%s/stat", entry->d_name);
        FILE * file = fopen(path, "r");
        if (!file) {
            continue;
        }
        // PID (NAME) STATE …
        char * name_end = fgets(line, sizeof line, file) ? strrchr(line, ')') : NULL;
        found = name_end && strchr("RD", name_end[2]);
        fclose(file);
    }
    closedir(tasks);
    return found;
}

void llama_backend_free(void) {
    // A woken thread is ready at once, so that a few looks are enough; more for one that waits for a full pipe.
    for (int quiet = 0, rounds = 0; quiet < 10 && rounds < 5000; rounds++) {
        quiet = others_are_at_work() ? 0 : quiet + 1;
        usleep(2000);
    }
    void (*next)(void) = (void (*)(void)) dlsym(RTLD_NEXT, "llama_backend_free");
    if (next) {
        next();
    }
}
