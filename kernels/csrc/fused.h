// What Python passes to the library for one of the fused operations; see scan.h for the scan.
//
// `_Call` in kernels/fused/sequences_native.py mirrors `FusedCall`; whoever changes one changes the
// other and raises kVersion.
#pragma once

#include <cstdint>

constexpr int64_t kWidest = 8;

enum Operation : int64_t {
    kAddRmsNorm,
    kNormRelevance,
    kConvSilu,
    kConvSiluRelevance,
    kGate,
    kGateRelevance,
    kSoftplus,
    kOperations,
};

// (B, K, L, E) or (B, L, E), by address and strides in elements; the channels are neighbours.
struct Rows {
    float* data;
    int64_t batch, direction, row;
};

struct FusedCall {
    int64_t operation;
    int64_t batch, directions, length, channels, width, threads;
    // eps; or gamma; or the scale of the gate; or the factors of signal and gate.
    double first, second;
    Rows in[3], out[2];
    // (E) of a norm; or taps (K, W, E), the last of which meets the output's own position.
    const float* weight;
    const float* bias;       // (K, E), or null
    const uint8_t* reverse;  // (K): whether a direction walks the sequence from its end
    // (B, L) of a norm; or null, or room for what the bias absorbs, (B, T) for T runs of channels.
    float* column;
};

// One compilation of fused.cpp. As for the scan, tasks are independent, and how they are dealt to
// threads does not change a bit of the result.
struct FusedKernel {
    int64_t (*tasks)(const FusedCall& call);
    void (*run)(const FusedCall& call, int64_t first, int64_t last);
    // Channels of a task of a convolution.
    int64_t run_of_channels;
};

extern const FusedKernel fused_portable;
#ifdef VIMLRP_X86
extern const FusedKernel fused_avx2;
extern const FusedKernel fused_avx512;
#endif
