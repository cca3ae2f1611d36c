// The entry points that Python calls: which instruction sets run here, and the scan and the fused
// operations, on sequences and on maps, on one of them.
#include "fused.h"
#include "maps.h"
#include "scan.h"

#ifdef _OPENMP
#include <omp.h>
#endif

namespace {

struct Choice {
    const char* name;
    const ScanKernel* scan;
    const FusedKernel* fused;
    const MapKernel* maps;
    bool runs;
};

// The fastest first. The compiler's check includes that the operating system saves the registers.
int64_t choices(Choice* to) {
    int64_t count = 0;
#ifdef VIMLRP_X86
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f");
    to[count++] = {"avx512", &scan_avx512, &fused_avx512, &maps_avx512, avx512};
    to[count++] = {"avx2", &scan_avx2, &fused_avx2, &maps_avx2, avx2};
#endif
    to[count++] = {"portable", &scan_portable, &fused_portable, &maps_portable, true};
    return count;
}

// Run every task of a call, in several threads where that is asked for.
template <typename Kernel, typename Call>
void deal(const Kernel& kernel, const Call& call) {
    const int64_t tasks = kernel.tasks(call);
#ifdef _OPENMP
    const int64_t threads = call.threads < tasks ? call.threads : tasks;
    // No parallel region for one thread: threads of a busy machine wait for each other.
    if (threads > 1) {
#pragma omp parallel num_threads(static_cast<int>(threads))
        {
            const int64_t me = omp_get_thread_num(), team = omp_get_num_threads();
            kernel.run(call, tasks * me / team, tasks * (me + 1) / team);
        }
        return;
    }
#endif
    kernel.run(call, 0, tasks);
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
    deal(*all[which].scan, *call);
    return 0;
}

// One of the fused operations; 0, or 1 where the caller's FusedCall has another size, there is no
// such operation or this processor lacks the instruction set.
EXPORT int64_t vimlrp_fused(const FusedCall* call, int64_t size, int64_t which) {
    if (size != sizeof(FusedCall) || !vimlrp_runs(which)) return 1;
    if (call->operation < 0 || call->operation >= kOperations) return 1;
    Choice all[3];
    choices(all);
    deal(*all[which].fused, *call);
    return 0;
}

// One of the fused operations on maps; the answers are those of vimlrp_fused.
EXPORT int64_t vimlrp_maps(const MapCall* call, int64_t size, int64_t which) {
    if (size != sizeof(MapCall) || !vimlrp_runs(which)) return 1;
    if (call->operation < 0 || call->operation >= kMapOperations) return 1;
    Choice all[3];
    choices(all);
    deal(*all[which].maps, *call);
    return 0;
}

// How many channels of a convolution one task has with instruction set `which`, or 0.
EXPORT int64_t vimlrp_run_of_channels(int64_t which) {
    Choice all[3];
    return which >= 0 && which < choices(all) ? all[which].fused->run_of_channels : 0;
}
