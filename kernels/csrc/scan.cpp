// The entry points that Python calls: which instruction sets run here, and the scan on one of them.
#include "scan.h"

#ifdef _OPENMP
#include <omp.h>
#endif

namespace {

struct Choice {
    const char* name;
    const Kernel* kernel;
    bool runs;
};

// The fastest first. The compiler's check includes that the operating system saves the registers.
int64_t choices(Choice* to) {
    int64_t count = 0;
#ifdef VIMLRP_X86
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    to[count++] = {"avx512", &kernel_avx512, avx2 && __builtin_cpu_supports("avx512f")};
    to[count++] = {"avx2", &kernel_avx2, avx2};
#endif
    to[count++] = {"portable", &kernel_portable, true};
    return count;
}

}  // namespace

#define EXPORT extern "C" __attribute__((visibility("default")))

// What a caller must agree on before anything else: the layout of ScanCall.
EXPORT int64_t vimlrp_version() { return kVersion; }
EXPORT int64_t vimlrp_call_size() { return sizeof(ScanCall); }

// Whether calls may use several threads.
EXPORT int64_t vimlrp_threaded() {
#ifdef _OPENMP
    return 1;
#else
    return 0;
#endif
}

// Name of instruction set `which`, the fastest first; null past the last one.
EXPORT const char* vimlrp_name(int64_t which) {
    Choice all[3];
    return which >= 0 && which < choices(all) ? all[which].name : nullptr;
}

// Whether this processor has it.
EXPORT int64_t vimlrp_runs(int64_t which) {
    Choice all[3];
    return which >= 0 && which < choices(all) && all[which].runs;
}

// The scan or its relevance pass; 0, or 1 where this processor lacks the instruction set.
EXPORT int64_t vimlrp_scan(const ScanCall* call, int64_t which) {
    if (!vimlrp_runs(which)) return 1;
    Choice all[3];
    choices(all);
    const Kernel& kernel = *all[which].kernel;
    const int64_t tasks = kernel.tasks(*call);
#ifdef _OPENMP
    const int64_t threads = call->threads < tasks ? call->threads : tasks;
    // No parallel region for one thread: threads of a busy machine wait for each other.
    if (threads > 1) {
#pragma omp parallel num_threads(static_cast<int>(threads))
        {
            const int64_t me = omp_get_thread_num(), team = omp_get_num_threads();
            kernel.run(*call, tasks * me / team, tasks * (me + 1) / team);
        }
        return 0;
    }
#endif
    kernel.run(*call, 0, tasks);
    return 0;
}
