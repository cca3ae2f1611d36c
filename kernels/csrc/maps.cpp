// The element-wise operations of a VMamba block, compiled once for every instruction set.
//
// MAPS names the table that this compilation exports. Neighbouring channels are the lanes of a
// register. A task of a norm or of GELU is one row; one of a convolution is one register of
// channels over a whole map, whose taps stay in registers.
#include "maps.h"

#include <stdlib.h>

#include "functions.h"
#include "rows.h"

namespace {

INLINE float* cell_of(const Cells& x, int64_t image, int64_t k, int64_t i, int64_t j) {
    return x.data + image * x.batch + k * x.route + i * x.line + j * x.cell;
}

// Row t of an image of a call whose maps are one cell wide.
struct Row {
    const MapCall& call;
    int64_t image, t;

    float* at(const Cells& x, int64_t k = 0) const { return cell_of(x, image, k, t, 0); }
    float* maybe(const Cells& x) const { return x.data ? at(x) : nullptr; }
    int64_t place() const { return image * call.height + t; }
    Part<false> part(int64_t e) const { return {call.channels, e}; }
};

// Normalise a row in its place, whose sum is known; returns the inverse standard deviation.
float normalise(const MapCall& call, float* row, float sum) {
    const float count = static_cast<float>(call.channels), mean = sum / count;
    Vec squares = {};
    for (int64_t e = 0; e < call.channels; e += kLanes) {
        const Part<false> part(call.channels, e);
        const Vec off = part.within(part.read(row) - mean);
        squares += off * off;
    }
    const float variance = total(squares) / count;
    const float inverse = 1.0f / __builtin_sqrtf(variance + static_cast<float>(call.first));
    for (int64_t e = 0; e < call.channels; e += kLanes) {
        const Part<false> part(call.channels, e);
        const Vec x = (part.read(row) - mean) * inverse;
        part.write(row, x * part.read(call.weight) + part.read(call.bias));
    }
    return inverse;
}

void layer_norm(const MapCall& call, const Row& row) {
    float* normed = row.at(call.out[0]);
    Vec sum = {};
    for (int64_t e = 0; e < call.channels; e += kLanes) {
        const Part<false> part = row.part(e);
        Vec x = part.read(row.at(call.in[0]));
        for (int64_t k = 1; k < call.routes; k++) x += part.read(row.at(call.in[0], k));
        sum += x;
        part.write(normed, x);
    }
    call.inverse[row.place()] = normalise(call, normed, total(sum));
}

void add_layer_norm(const MapCall& call, const Row& row) {
    const float *x = row.at(call.in[0]), *branch = row.at(call.in[1]);
    float *stream = row.at(call.out[0]), *normed = row.at(call.out[1]);
    Vec sum = {};
    for (int64_t e = 0; e < call.channels; e += kLanes) {
        const Part<false> part = row.part(e);
        const Vec added = part.read(x) + part.read(branch);
        sum += added;
        part.write(normed, added);
        part.write(stream, call.after ? added + part.read(call.after) : added);
    }
    call.inverse[row.place()] = normalise(call, normed, total(sum));
}

void layer_norm_relevance(const MapCall& call, const Row& row) {
    const float *at_normed = row.at(call.in[0]), *at_stream = row.maybe(call.in[1]);
    float* out = row.at(call.out[0]);
    Vec scaled = {}, kept = {}, by_after = {};
    for (int64_t e = 0; e < call.channels; e += kLanes) {
        const Part<false> part = row.part(e);
        const Vec at = part.read(at_normed);
        scaled += at * part.read(call.weight);
        kept += at * part.read(call.bias);
        if (call.after && at_stream) by_after += part.read(at_stream) * part.read(call.after);
    }
    const float mean = total(scaled) / static_cast<float>(call.channels);
    const float inverse = call.inverse[row.place()];
    for (int64_t e = 0; e < call.channels; e += kLanes) {
        const Part<false> part = row.part(e);
        const Vec x = (part.read(at_normed) * part.read(call.weight) - mean) * inverse;
        part.write(out, at_stream ? part.read(at_stream) + x : x);
    }
    call.absorbed[row.place()] = total(kept);
    call.by_after[row.place()] = total(by_after);
}

void gelu_relevance(const MapCall& call, const Row& row) {
    const float *at = row.at(call.in[0]), *x = row.at(call.in[1]);
    float* out = row.at(call.out[0]);
    Vec kept = {};
    for (int64_t e = 0; e < call.channels; e += kLanes) {
        const Part<false> part = row.part(e);
        const Vec at_x = part.read(at) * normal_distribution(part.read(x));
        kept += at_x * part.read(call.bias);
        part.write(out, at_x);
    }
    call.absorbed[row.place()] = total(kept);
}

void gelu_ratio(const MapCall& call, const Row& row) {
    for (int64_t e = 0; e < call.channels; e += kLanes) {
        const Part<false> part = row.part(e);
        part.write(row.at(call.out[0]), normal_distribution(part.read(row.at(call.in[0]))));
    }
}

// What an output passes to every contribution, and what to those of its own sign beside it: the
// latter with the sign of the output, so that it counts times the magnitude of a contribution.
struct Passed {
    Vec plain, signed_;
};

// For an output c whose contributions have magnitudes that sum to `size`. The winning part of the
// contributions is (c + size) / 2 or (c - size) / 2, so the rule's quotient is that of |c| and
// |c| + gamma (|c| + size) / 2: no difference of large sums.
INLINE Passed passed(Vec above, Vec below, Vec c, Vec size, float half) {
    const Vec zero = {}, large = magnitude(c);
    const Vec share = above * large / (below * (large + half * (large + size)));
    const Vec winner = c == zero ? zero : share * half;
    return {c == zero ? above / below : share * (1.0f + half), c < zero ? -winner : winner};
}

void gamma_shares(const MapCall& call, const Row& row) {
    const float *z = row.at(call.in[0]), *size = row.at(call.in[1]);
    float *at_z = row.at(call.out[0]), *at_size = row.at(call.out[1]);
    const float half = 0.5f * static_cast<float>(call.first);
    const Vec one = Vec{} + 1.0f;
    for (int64_t e = 0; e < call.channels; e += kLanes) {
        const Part<false> part = row.part(e);
        const Passed to = passed(one, one, part.read(z), part.read(size), half);
        part.write(at_z, to.plain);
        part.write(at_size, to.signed_);
    }
}

constexpr int kSide = 3;

// One register of channels of one map: taps, and inputs by position with zeros around the map.
template <bool kWhole>
struct Plane {
    const MapCall& call;
    const int64_t image;
    const Part<kWhole> part;
    Vec taps[kSide][kSide], bias;

    Plane(const MapCall& of, int64_t b, int64_t channel)
        : call(of), image(b), part(of.channels, channel), bias{} {
        for (int i = 0; i < kSide; i++) {
            for (int j = 0; j < kSide; j++) {
                taps[i][j] = part.read(of.weight + (i * kSide + j) * of.channels);
            }
        }
        if (of.bias) bias = part.read(of.bias);
    }

    INLINE Vec input(const Cells& x, int64_t i, int64_t j) const {
        const bool inside = i >= 0 && i < call.height && j >= 0 && j < call.width;
        return inside ? part.read(cell_of(x, image, 0, i, j)) : Vec{};
    }
};

// The inputs around a cell that moves along a line; each is read once.
struct Window {
    Vec x[kSide][kSide] = {};

    template <typename Of>
    INLINE void step(const Of& input, int64_t i, int64_t j) {
        for (int r = 0; r < kSide; r++) {
            x[r][0] = x[r][1];
            x[r][1] = x[r][2];
            x[r][2] = input(i + r - 1, j + 1);
        }
    }
};

template <bool kWhole>
void conv_silu(const MapCall& call, int64_t image, int64_t channel) {
    const Plane<kWhole> plane(call, image, channel);
    const auto input = [&](int64_t i, int64_t j) { return plane.input(call.in[0], i, j); };
    for (int64_t i = 0; i < call.height; i++) {
        Window window;
        window.step(input, i, -1);
        for (int64_t j = 0; j < call.width; j++) {
            window.step(input, i, j);
            Vec c = plane.bias;
            for (int r = 0; r < kSide; r++) {
                for (int q = 0; q < kSide; q++) c += plane.taps[r][q] * window.x[r][q];
            }
            const Quotient s = sigmoid(c);
            plane.part.write(cell_of(call.out[0], image, 0, i, j), c * (s.above / s.below));
        }
    }
}

// Three lines of `Passed`, with a cell of zeros at either end; scratch memory of one thread.
class Lines {
  public:
    explicit Lines(int64_t width) : width_(width + 2), room_(allocate(kSide * width_)) {}
    ~Lines() { free(room_); }
    Lines(const Lines&) = delete;
    Lines& operator=(const Lines&) = delete;

    Passed* line(int64_t i) const { return room_ + (i + kSide) % kSide * width_ + 1; }

    void clear(int64_t i) const {
        for (int64_t j = -1; j < width_ - 1; j++) line(i)[j] = Passed{};
    }

  private:
    static Passed* allocate(int64_t count) {
        const size_t size = static_cast<size_t>(count) * sizeof(Passed);
        void* room = nullptr;
        if (posix_memalign(&room, sizeof(Vec), size)) __builtin_trap();
        return static_cast<Passed*>(room);
    }

    const int64_t width_;
    Passed* const room_;
};

template <bool kWhole>
class ConvRelevance {
  public:
    ConvRelevance(const MapCall& call, int64_t image, int64_t channel)
        : call_(call), plane_(call, image, channel), lines_(call.width) {}

    void run() {
        for (int64_t i = -1; i < kSide - 1; i++) lines_.clear(i);
        pass(0);
        for (int64_t i = 0; i < call_.height; i++) {
            i + 1 < call_.height ? pass(i + 1) : lines_.clear(i + 1);
            gather(i);
        }
        if (call_.absorbed) {
            plane_.part.write(call_.absorbed + plane_.image * call_.channels, kept_);
        }
    }

  private:
    // What the outputs of line i pass on.
    void pass(int64_t i) {
        const auto input = [&](int64_t r, int64_t j) { return plane_.input(call_.in[1], r, j); };
        const float half = 0.5f * static_cast<float>(call_.first);
        Passed* to = lines_.line(i);
        Window window;
        window.step(input, i, -1);
        for (int64_t j = 0; j < call_.width; j++) {
            window.step(input, i, j);
            Vec c = plane_.bias, size = magnitude(plane_.bias);
            for (int r = 0; r < kSide; r++) {
                for (int q = 0; q < kSide; q++) {
                    const Vec product = plane_.taps[r][q] * window.x[r][q];
                    c += product;
                    size += magnitude(product);
                }
            }
            const Quotient s = sigmoid(c);
            to[j] = passed(given(i, j) * s.above, s.below, c, size, half);
            kept_ += plane_.bias * to[j].plain + magnitude(plane_.bias) * to[j].signed_;
        }
    }

    INLINE Vec given(int64_t i, int64_t j) const {
        Vec sum = plane_.part.read(cell_of(call_.in[0], plane_.image, 0, i, j));
        for (int64_t k = 1; k < call_.routes; k++) {
            sum += plane_.part.read(cell_of(call_.in[0], plane_.image, k, i, j));
        }
        return sum;
    }

    // What the inputs of line i receive: of output (i + 1 - r, j + 1 - q) by tap (r, q).
    void gather(int64_t i) const {
        const Vec zero = {};
        for (int64_t j = 0; j < call_.width; j++) {
            Vec plain = {}, signed_ = {};
            for (int r = 0; r < kSide; r++) {
                const Passed* from = lines_.line(i + 1 - r) + j + 1;
                for (int q = 0; q < kSide; q++) {
                    plain += plane_.taps[r][q] * from[-q].plain;
                    signed_ += magnitude(plane_.taps[r][q]) * from[-q].signed_;
                }
            }
            const Vec x = plane_.input(call_.in[1], i, j);
            const Vec signed_x = x > zero ? signed_ : (x < zero ? -signed_ : zero);
            plane_.part.write(cell_of(call_.out[0], plane_.image, 0, i, j), plain + signed_x);
        }
    }

    const MapCall& call_;
    const Plane<kWhole> plane_;
    const Lines lines_;
    Vec kept_ = {};
};

template <bool kWhole>
void walk(const MapCall& call, int64_t image, int64_t channel) {
    if (call.operation == kMapConvSilu) return conv_silu<kWhole>(call, image, channel);
    ConvRelevance<kWhole>(call, image, channel).run();
}

int64_t registers_of(const MapCall& call) {
    return (call.channels + kLanes - 1) / kLanes;
}

bool is_convolution(const MapCall& call) {
    return call.operation == kMapConvSilu || call.operation == kMapConvSiluRelevance;
}

int64_t tasks(const MapCall& call) {
    return call.batch * (is_convolution(call) ? registers_of(call) : call.height);
}

void run_plane(const MapCall& call, int64_t task) {
    const int64_t image = task / registers_of(call);
    const int64_t channel = task % registers_of(call) * kLanes;
    const bool whole = call.channels - channel >= kLanes;
    whole ? walk<true>(call, image, channel) : walk<false>(call, image, channel);
}

using OfRow = void (*)(const MapCall& call, const Row& row);

OfRow row_operation(const MapCall& call) {
    switch (call.operation) {
        case kLayerNorm: return layer_norm;
        case kAddLayerNorm: return add_layer_norm;
        case kLayerNormRelevance: return layer_norm_relevance;
        case kGeluRatio: return gelu_ratio;
        case kGammaShares: return gamma_shares;
        default: return gelu_relevance;
    }
}

void run(const MapCall& call, int64_t first, int64_t last) {
    const FlushDenormals flush;
    if (is_convolution(call)) {
        for (int64_t task = first; task < last; task++) run_plane(call, task);
        return;
    }
    const OfRow of_row = row_operation(call);
    for (int64_t task = first; task < last; task++) {
        of_row(call, {call, task / call.height, task % call.height});
    }
}

}  // namespace

extern const MapKernel MAPS = {tasks, run};
