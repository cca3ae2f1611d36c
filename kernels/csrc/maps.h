// What Python passes to the library for one of the fused operations on maps; see fused.h for those
// on sequences.
//
// `_Call` in kernels/fused/maps_native.py mirrors `MapCall`; whoever changes one changes the other
// and raises kVersion.
#pragma once

#include <cstdint>

enum MapOperation : int64_t {
    kLayerNorm,
    kAddLayerNorm,
    kLayerNormRelevance,
    kMapConvSilu,
    kMapConvSiluRelevance,
    kGeluRelevance,
    kGammaShares,
    kGeluRatio,
    kMapOperations,
};

// (B, K, H, W, C) by address and strides in elements; the channels are neighbours. A sequence of
// rows is a map one cell wide.
struct Cells {
    float* data;
    int64_t batch, route, line, cell;
};

struct MapCall {
    int64_t operation;
    int64_t batch, routes, height, width, channels, threads;
    // eps, or gamma.
    double first;
    Cells in[2], out[2];
    // (C) of a norm; or taps (3, 3, C).
    const float* weight;
    const float* bias;   // (C), or null
    const float* after;  // (C), or null
    // Inverse deviations (B, L); what biases absorb, (B, L), or (B, C) for a convolution; or null.
    float *inverse, *absorbed, *by_after;
};

// One compilation of maps.cpp. As for the scan, tasks are independent, and how they are dealt to
// threads does not change a bit of the result.
struct MapKernel {
    int64_t (*tasks)(const MapCall& call);
    void (*run)(const MapCall& call, int64_t first, int64_t last);
};

extern const MapKernel maps_portable;
#ifdef VIMLRP_X86
extern const MapKernel maps_avx2;
extern const MapKernel maps_avx512;
#endif
