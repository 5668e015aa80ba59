// Keeps llama.cpp's C++ exceptions out of Rust, which cannot catch them.

#include <cstddef>
#include <cstdio>
#include <exception>

extern "C" {

typedef void (*moqa_call)(void * data);
typedef void (*moqa_report)(const char * message);

// Calls call(data). If an exception ends it, writes the exception's message and returns false.
bool moqa_catch(moqa_call call, void * data, char * message, size_t size) noexcept {
    try {
        call(data);
        return true;
    } catch (const std::exception & e) {
        snprintf(message, size, "%s", e.what());
    } catch (...) {
        snprintf(message, size, "an exception without a message");
    }
    return false;
}

static moqa_report report_uncaught;

// Has exceptions that nobody catches reported; the report must not return.
void moqa_on_uncaught(moqa_report report) noexcept {
    report_uncaught = report;
    std::set_terminate([] {
        if (auto current = std::current_exception()) {
            try {
                std::rethrow_exception(current);
            } catch (const std::exception & e) {
                report_uncaught(e.what());
            } catch (...) {
            }
        }
        report_uncaught("an exception that nobody caught");
    });
}

}
