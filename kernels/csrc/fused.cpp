// The element-wise operations of a Vim block, compiled once for every instruction set.
//
// FUSED names the table that this compilation exports. Neighbouring channels are the lanes of a
// register. A task of a norm, a gate or a step is one row; one of a convolution is a run of
// channels along the whole sequence, whose windows all directions share: one that runs forwards has
// its output at the newest position of the window, one that is reversed at the oldest, and both
// pass their relevance to exactly the positions of the window.
#include "fused.h"
#include "functions.h"
#include "rows.h"

namespace {

// Registers of channels that walk a convolution together, so that rows are read in long runs.
constexpr int kStrip = 4;
constexpr int64_t kRun = kStrip * kLanes;

INLINE float* row_of(const Rows& x, int64_t image, int64_t k, int64_t t) {
    return x.data + image * x.batch + k * x.direction + t * x.row;
}

void add_rms_norm(const FusedCall& call, int64_t b, int64_t, int64_t t) {
    const float* hidden = row_of(call.in[0], b, 0, t);
    const float* residual = call.in[1].data ? row_of(call.in[1], b, 0, t) : nullptr;
    float* stream = row_of(call.out[0], b, 0, t);
    float* normed = row_of(call.out[1], b, 0, t);
    Vec squares = {};
    for (int64_t e = 0; e < call.channels; e += kLanes) {
        const Part<false> part(call.channels, e);
        const Vec x = residual ? part.read(hidden) + part.read(residual) : part.read(hidden);
        squares += x * x;
        part.write(stream, x);
    }
    const float mean = total(squares) / static_cast<float>(call.channels);
    const float inverse = 1.0f / __builtin_sqrtf(mean + static_cast<float>(call.first));
    for (int64_t e = 0; e < call.channels; e += kLanes) {
        const Part<false> part(call.channels, e);
        part.write(normed, part.read(stream) * inverse * part.read(call.weight));
    }
    call.column[b * call.length + t] = inverse;
}

void norm_relevance(const FusedCall& call, int64_t b, int64_t, int64_t t) {
    const float* at_normed = row_of(call.in[0], b, 0, t);
    const float* at_stream = call.in[1].data ? row_of(call.in[1], b, 0, t) : nullptr;
    float* out = row_of(call.out[0], b, 0, t);
    const float inverse = call.column[b * call.length + t];
    for (int64_t e = 0; e < call.channels; e += kLanes) {
        const Part<false> part(call.channels, e);
        const Vec x = part.read(at_normed) * part.read(call.weight) * inverse;
        part.write(out, at_stream ? part.read(at_stream) + x : x);
    }
}

void gate(const FusedCall& call, int64_t b, int64_t, int64_t t) {
    const float* z = row_of(call.in[1], b, 0, t);
    float* gated = row_of(call.out[0], b, 0, t);
    float* signal = row_of(call.out[1], b, 0, t);
    const float scale = static_cast<float>(call.first);
    for (int64_t e = 0; e < call.channels; e += kLanes) {
        const Part<false> part(call.channels, e);
        Vec sum = {};
        for (int64_t k = 0; k < call.directions; k++) sum += part.read(row_of(call.in[0], b, k, t));
        sum *= scale;
        const Vec gating = part.read(z);
        const Quotient q = sigmoid(gating);
        part.write(signal, sum);
        part.write(gated, sum * (gating * (q.above / q.below)));
    }
}

void gate_relevance(const FusedCall& call, int64_t b, int64_t, int64_t t) {
    const float* at_gated = row_of(call.in[0], b, 0, t);
    const float* signal = row_of(call.in[1], b, 0, t);
    const float* z = row_of(call.in[2], b, 0, t);
    float* at_y = row_of(call.out[0], b, 0, t);
    float* at_z = row_of(call.out[1], b, 0, t);
    const float to_signal = static_cast<float>(call.first);
    const float to_gate = static_cast<float>(call.second);
    for (int64_t e = 0; e < call.channels; e += kLanes) {
        const Part<false> part(call.channels, e);
        const Vec gating = part.read(z);
        const Quotient q = sigmoid(gating);
        const Vec at = part.read(at_gated) * (q.above / q.below);
        const Vec gated = part.read(signal);
        part.write(at_y, at * gating * to_signal);
        part.write(at_z, at * gated * to_gate);
    }
}

void softplus_with_bias(const FusedCall& call, int64_t b, int64_t k, int64_t t) {
    const float* raw = row_of(call.in[0], b, k, t);
    float* dt = row_of(call.out[0], b, k, t);
    const float* bias = call.bias ? call.bias + k * call.channels : nullptr;
    for (int64_t e = 0; e < call.channels; e += kLanes) {
        const Part<false> part(call.channels, e);
        part.write(dt, softplus(bias ? part.read(raw) + part.read(bias) : part.read(raw)));
    }
}

using OfRow = void (*)(const FusedCall& call, int64_t b, int64_t k, int64_t t);

// A row of zeros stands for every position outside the sequence.
alignas(64) const float kZeros[kRun] = {};

// One image and run of channels of a convolution; pointers are asked for by position.
struct Stretch {
    const FusedCall& call;
    int64_t image, channel, channels;

    bool inside(int64_t t) const { return t >= 0 && t < call.length; }

    const float* input(const Rows& x, int64_t t) const {
        return inside(t) ? row_of(x, image, 0, t) + channel : kZeros;
    }

    // Where the output of direction k stands, for a window whose newest position is t.
    int64_t output(int64_t k, int64_t t) const {
        return call.reverse[k] ? t - (call.width - 1) : t;
    }

    const float* taps(int64_t k, int64_t q) const {
        const int64_t tap = call.reverse[k] ? call.width - 1 - q : q;
        return call.weight + (k * call.width + tap) * call.channels + channel;
    }

    const float* bias(int64_t k) const {
        return call.bias ? call.bias + k * call.channels + channel : kZeros;
    }
};

// What one direction does to a window: its taps in the order of the window, and its bias.
template <int kWidth>
struct Filter {
    const float* taps[kWidth];
    const float* bias;

    Filter(const Stretch& at, int64_t k) : bias(at.bias(k)) {
        for (int q = 0; q < kWidth; q++) taps[q] = at.taps(k, q);
    }
};

// kWhole says that the channels fill their registers; otherwise there is one, not full.
template <int kWidth, bool kWhole>
struct Convolution {
    // The inputs of the window whose newest position is t.
    static void find_window(const Stretch& at, const Rows& x, int64_t t, const float** window) {
        for (int q = 0; q < kWidth; q++) window[q] = at.input(x, t - kWidth + 1 + q);
    }

    static void silu(const Stretch& at) {
        const FusedCall& call = at.call;
        for (int64_t t = 0; t < call.length + kWidth - 1; t++) {
            const float* window[kWidth];
            find_window(at, call.in[0], t, window);
            for (int64_t k = 0; k < call.directions; k++) {
                const int64_t place = at.output(k, t);
                if (!at.inside(place)) continue;
                float* out = row_of(call.out[0], at.image, k, place) + at.channel;
                const Filter<kWidth> filter(at, k);
                for (int64_t e = 0; e < at.channels; e += kLanes) {
                    const Part<kWhole> part(at.channels, e);
                    Vec c = part.read(filter.bias);
                    for (int q = 0; q < kWidth; q++) {
                        c += part.read(filter.taps[q]) * part.read(window[q]);
                    }
                    const Quotient s = sigmoid(c);
                    part.write(out, c * (s.above / s.below));
                }
            }
        }
    }

    // The gradients at the inputs of a window, complete once an input is the oldest of it.
    using Sums = Vec[kWidth];

    static float relevance(const Stretch& at) {
        const FusedCall& call = at.call;
        const float gamma = static_cast<float>(call.first);
        Sums sums[kStrip] = {};
        Vec kept = {};
        for (int64_t t = 0; t < call.length + kWidth - 1; t++) {
            const float* window[kWidth];
            find_window(at, call.in[1], t, window);
            for (int64_t e = 0; e < at.channels; e += kLanes) {
                Sums& sum = sums[e / kLanes];
                for (int q = 1; q < kWidth; q++) sum[q - 1] = sum[q];
                sum[kWidth - 1] = Vec{};
            }
            for (int64_t k = 0; k < call.directions; k++) {
                const int64_t place = at.output(k, t);
                if (!at.inside(place)) continue;
                const float* at_u = row_of(call.in[0], at.image, k, place) + at.channel;
                const Filter<kWidth> filter(at, k);
                for (int64_t e = 0; e < at.channels; e += kLanes) {
                    const Part<kWhole> part(at.channels, e);
                    const Vec given = part.read(at_u);
                    kept += pass(filter, part, given, window, gamma, sums[e / kLanes]);
                }
            }
            const int64_t oldest = t - kWidth + 1;
            if (oldest < 0) continue;
            float* out = row_of(call.out[0], at.image, 0, oldest) + at.channel;
            for (int64_t e = 0; e < at.channels; e += kLanes) {
                Part<kWhole>(at.channels, e).write(out, sums[e / kLanes][0]);
            }
        }
        return total(kept);
    }

    // Pass the gradient at one output on to its inputs; returns what the bias absorbs.
    //
    // The winning part of the contributions is (c + size) / 2 or (c - size) / 2, so the rule's
    // quotient is that of |c| and |c| + gamma (|c| + size) / 2: no difference of large sums.
    static INLINE Vec pass(const Filter<kWidth>& filter, Part<kWhole> part, Vec at_u,
                           const float* const* window, float gamma, Sums& sums) {
        const Vec zero = {}, bias = part.read(filter.bias);
        Vec c = bias, size = magnitude(bias), products[kWidth];
        for (int q = 0; q < kWidth; q++) {
            products[q] = part.read(filter.taps[q]) * part.read(window[q]);
            c += products[q];
            size += magnitude(products[q]);
        }
        const Quotient s = sigmoid(c);
        const Vec above = magnitude(c);
        const Vec share = s.above * above / (s.below * (above + 0.5f * gamma * (above + size)));
        const Vec passed = at_u * (c == zero ? zero + 0.5f : share);
        const Vec raised = passed * (1.0f + gamma);
        // What a contribution counts above zero and below it; one of exactly zero counts half with
        // either sign.
        const Vec upper = c > zero ? raised : passed, lower = c < zero ? raised : passed;
        const Vec middle = 0.5f * (upper + lower);
        for (int q = 0; q < kWidth; q++) {
            const Vec sign = products[q] > zero ? upper : lower;
            sums[q] += part.read(filter.taps[q]) * (products[q] == zero ? middle : sign);
        }
        return bias * (bias >= zero ? upper : lower);
    }
};

int64_t runs_of(const FusedCall& call) {
    return (call.channels + kRun - 1) / kRun;
}

bool is_convolution(const FusedCall& call) {
    return call.operation == kConvSilu || call.operation == kConvSiluRelevance;
}

template <int kWidth, bool kWhole>
float walk(const Stretch& at) {
    using Walk = Convolution<kWidth, kWhole>;
    if (at.call.operation == kConvSiluRelevance) return Walk::relevance(at);
    Walk::silu(at);
    return 0;
}

template <int kWidth>
void run_stretch(const FusedCall& call, int64_t task) {
    const int64_t image = task / runs_of(call), start = task % runs_of(call) * kRun;
    const int64_t rest = call.channels - start, channels = rest < kRun ? rest : kRun;
    const int64_t whole = channels - channels % kLanes;
    float kept = 0;
    if (whole) kept += walk<kWidth, true>({call, image, start, whole});
    const int64_t tail = channels - whole;
    if (tail) kept += walk<kWidth, false>({call, image, start + whole, tail});
    if (call.column) call.column[task] = kept;
}

using OfStretch = void (*)(const FusedCall& call, int64_t task);

OfStretch stretch_operation(const FusedCall& call) {
    constexpr OfStretch by_width[kWidest] = {
        run_stretch<1>, run_stretch<2>, run_stretch<3>, run_stretch<4>,
        run_stretch<5>, run_stretch<6>, run_stretch<7>, run_stretch<8>,
    };
    return by_width[call.width - 1];
}

int64_t planes(const FusedCall& call) {
    return call.operation == kSoftplus ? call.directions : 1;
}

int64_t tasks(const FusedCall& call) {
    return call.batch * (is_convolution(call) ? runs_of(call) : planes(call) * call.length);
}

OfRow row_operation(const FusedCall& call) {
    switch (call.operation) {
        case kAddRmsNorm: return add_rms_norm;
        case kNormRelevance: return norm_relevance;
        case kGate: return gate;
        case kGateRelevance: return gate_relevance;
        default: return softplus_with_bias;
    }
}

void run(const FusedCall& call, int64_t first, int64_t last) {
    const FlushDenormals flush;
    if (is_convolution(call)) {
        const OfStretch stretch = stretch_operation(call);
        for (int64_t task = first; task < last; task++) stretch(call, task);
        return;
    }
    const OfRow of_row = row_operation(call);
    const int64_t k = planes(call);
    for (int64_t task = first; task < last; task++) {
        const int64_t plane = task / call.length;
        of_row(call, plane / k, plane % k, task % call.length);
    }
}

}  // namespace

extern const FusedKernel FUSED = {tasks, run, kRun};
