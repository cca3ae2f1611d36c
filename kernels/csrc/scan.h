// What Python passes to the library, and what the parts of the library know of each other.
//
// Plain C types: no Python, no PyTorch. kernels/compiled.py mirrors `ScanCall`; whoever changes one
// changes the other and raises kVersion, which counts for fused.h and maps.h too.
#pragma once

#include <cstdint>

constexpr int64_t kVersion = 3;
constexpr int64_t kLargestState = 256;

// Strides count elements. The last axis of every operand but A and D is contiguous.
struct Operand {
    const float* data;
    int64_t batch, direction, row, group;
};

struct ScanCall {
    int64_t batch, directions, length, channels, groups, state;
    // The relevance pass instead of the scan; whether its directions add up to one gradient.
    int64_t adjoint, shared;
    int64_t threads;
    // u, or the gradient of the output: (B, K, L, D); a stride of 0 repeats what is shared.
    Operand in;
    Operand dt;
    Operand B;
    Operand C;
    const float* A;  // (K, D, N)
    int64_t A_direction, A_channel, A_state;
    const float* D;  // (K, D), or null
    int64_t D_direction, D_channel;
    const int64_t* index;    // (K, L), contiguous, or null for raster order
    const uint8_t* reverse;  // (K)
    float* out;              // (B, K, L, D), contiguous; one direction where shared
};

// One compilation of scan.cpp. Tasks are independent of each other and none reads what another
// writes, so how they are dealt to threads does not change a bit of the result.
struct ScanKernel {
    int64_t (*tasks)(const ScanCall& call);
    void (*run)(const ScanCall& call, int64_t first, int64_t last);
};

extern const ScanKernel scan_portable;
#ifdef VIMLRP_X86
extern const ScanKernel scan_avx2;
extern const ScanKernel scan_avx512;
#endif
