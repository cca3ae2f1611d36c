// The selective scan and its relevance pass, compiled once for every instruction set.
//
// SCAN names the table that this compilation exports. A program walks the sequence once, with
// neighbouring channels in the lanes of a register and their states in registers or the first-level
// cache. Both passes are the same walk: the relevance pass goes against the order of visit, swaps B
// and C, and applies the decay of a step after the step instead of before it:
//
//     h = decay * h + (dt * u) * B   y = C . h + D * u
//     g = carry + dy * C             du = dt * (B . g) + D * dy     carry = decay * g
#include "lanes.h"
#include "scan.h"

namespace {

// Registers of neighbouring channels that walk together where the state is small: rows are then
// read in long runs, and the steps of one channel do not wait for each other.
constexpr int kStrip = 16;
// Steps between asking for a row and reading it, where rows are short of arithmetic: scan orders
// jump, and no processor foresees the rows of a relevance pass. Measured: 3 is late, 8 no better.
constexpr int kAhead = 5;
constexpr float kLog2e = 1.4426950408889634f;

// One direction of one image for a run of channels; pointers stand at the first of them.
struct Run {
    const float *in, *dt, *drive, *read, *rate, *skip;
    int64_t in_row, dt_row, drive_row, read_row, out_row;
    int64_t rate_channel, rate_state, skip_channel;
    const int64_t* index;
    int64_t length, state;
    bool upwards, accumulate;
    float* out;
};

int64_t position(const Run& run, int64_t step) {
    const int64_t place = run.upwards ? step : run.length - 1 - step;
    return run.index ? run.index[place] : place;
}

// `count` channels in one register.
Vec gather(const float* from, int64_t stride, int count) {
    Vec x = {};
    for (int i = 0; i < count; i++) x[i] = from[i * stride];
    return x;
}

template <bool kAdjoint>
INLINE void advance(Vec& h, Vec rate, Vec dt, Vec in, float drive, float read, Vec& sum) {
    const Vec decay = exp2(dt * rate);
    if (kAdjoint) {
        const Vec g = h + in * drive;
        sum += g * read;
        h = decay * g;
    } else {
        h = decay * h + in * drive;
        sum += h * read;
    }
}

// kState is the size of the state, or 0 to read it at run time; kWhole says that every register is
// full, otherwise there is one, with `count` channels.
template <int kState, bool kAdjoint, bool kWhole>
struct Walk {
    static constexpr int kStates = kState ? kState : kLargestState;
    static constexpr bool kWide = kState == 1 || kState == 2;
    using State = Vec[kStates];

    // The constants of one register of channels, the first of them `channel`.
    static INLINE void begin(const Run& run, int64_t channel, int lanes, State& rate, Vec& skip) {
        const float* from = run.rate + channel * run.rate_channel;
        const int states = kState ? kState : static_cast<int>(run.state);
        for (int n = 0; n < states; n++) {
            rate[n] = gather(from + n * run.rate_state, run.rate_channel, lanes) * kLog2e;
        }
        skip = Vec{};
        if (!run.skip) return;
        skip = gather(run.skip + channel * run.skip_channel, run.skip_channel, lanes);
    }

    static INLINE void prefetch(const Run& run, int64_t row, int64_t channel) {
        __builtin_prefetch(run.in + row * run.in_row + channel);
        __builtin_prefetch(run.dt + row * run.dt_row + channel);
        __builtin_prefetch(run.out + row * run.out_row + channel, 1);
    }

    // One step of one register of channels.
    static INLINE void visit(const Run& run, int64_t row, int64_t channel, int lanes, State& h,
                             const State& rate, Vec skip) {
        const float* in_at = run.in + row * run.in_row + channel;
        const float* dt_at = run.dt + row * run.dt_row + channel;
        float* out_at = run.out + row * run.out_row + channel;
        const float* drive = run.drive + row * run.drive_row;
        const float* read = run.read + row * run.read_row;
        const Vec in = kWhole ? load(in_at) : load_some(in_at, lanes);
        const Vec dt = kWhole ? load(dt_at) : load_some(dt_at, lanes);
        const Vec flow = kAdjoint ? in : dt * in;
        const int states = kState ? kState : static_cast<int>(run.state);
        Vec sums[2] = {};  // two, so that an addition need not wait for the one before
#pragma GCC unroll 16
        for (int n = 0; n < states; n++) {
            advance<kAdjoint>(h[n], rate[n], dt, flow, drive[n], read[n], sums[n & 1]);
        }
        const Vec sum = sums[0] + sums[1];
        Vec out = skip * in + (kAdjoint ? dt * sum : sum);
        if (run.accumulate) out += kWhole ? load(out_at) : load_some(out_at, lanes);
        kWhole ? store(out_at, out) : store_some(out_at, out, lanes);
    }

    static void all(const Run& run, int count) {
        const int registers = kWide && kWhole ? count / kLanes : 1;
        const int lanes = kWhole ? kLanes : count;
        State h[kWide ? kStrip : 1] = {}, rate[kWide ? kStrip : 1];
        Vec skip[kWide ? kStrip : 1];
        for (int v = 0; v < registers; v++) begin(run, v * kLanes, lanes, rate[v], skip[v]);
        for (int64_t step = 0; step < run.length; step++) {
            const int64_t row = position(run, step);
            const bool ask = kWide && step + kAhead < run.length;
            const int64_t later = ask ? position(run, step + kAhead) : row;
            for (int v = 0; v < registers; v++) {
                if (kWide) prefetch(run, later, v * kLanes);
                visit(run, row, v * kLanes, lanes, h[v], rate[v], skip[v]);
            }
        }
    }
};

template <int kState, bool kAdjoint>
void walk_channels(Run run, int64_t channels) {
    const int whole = static_cast<int>(channels - channels % kLanes);
    if (whole) Walk<kState, kAdjoint, true>::all(run, whole);
    if (whole == channels) return;
    run.in += whole, run.dt += whole, run.out += whole;
    run.rate += whole * run.rate_channel;
    if (run.skip) run.skip += whole * run.skip_channel;
    Walk<kState, kAdjoint, false>::all(run, static_cast<int>(channels) - whole);
}

template <bool kAdjoint>
void walk_states(const Run& run, int64_t channels) {
    switch (run.state) {
        case 1: return walk_channels<1, kAdjoint>(run, channels);
        case 2: return walk_channels<2, kAdjoint>(run, channels);
        case 4: return walk_channels<4, kAdjoint>(run, channels);
        case 8: return walk_channels<8, kAdjoint>(run, channels);
        case 16: return walk_channels<16, kAdjoint>(run, channels);
        default: return walk_channels<0, kAdjoint>(run, channels);
    }
}

// How the channels are cut: runs of `width` within a group, since B and C change with the group.
struct Cut {
    int64_t in_group, width, runs;
    int64_t images;  // images, times directions unless one task adds them all up

    explicit Cut(const ScanCall& call) {
        in_group = call.channels / call.groups;
        images = call.batch * (call.adjoint && call.shared ? 1 : call.directions);
        width = call.state > 2 ? kLanes : kLanes * kStrip;
        // Long runs, unless threads would go without work.
        while (width > kLanes && images * call.groups * runs_of(width) < call.threads) width /= 2;
        runs = runs_of(width);
    }

    int64_t runs_of(int64_t size) const { return (in_group + size - 1) / size; }
};

const float* at(const Operand& x, int64_t image, int64_t k, int64_t group) {
    return x.data + image * x.batch + k * x.direction + group * x.group;
}

Run make_run(const ScanCall& call, int64_t image, int64_t k, int64_t group, int64_t channel) {
    const bool shared = call.adjoint && call.shared;
    const Operand& drive = call.adjoint ? call.C : call.B;
    const Operand& read = call.adjoint ? call.B : call.C;
    const int64_t plane = shared ? image : image * call.directions + k;
    Run run = {};
    run.in = at(call.in, image, k, 0) + channel, run.in_row = call.in.row;
    run.dt = at(call.dt, image, k, 0) + channel, run.dt_row = call.dt.row;
    run.drive = at(drive, image, k, group), run.drive_row = drive.row;
    run.read = at(read, image, k, group), run.read_row = read.row;
    run.rate = call.A + k * call.A_direction + channel * call.A_channel;
    run.rate_channel = call.A_channel, run.rate_state = call.A_state;
    run.skip = call.D ? call.D + k * call.D_direction + channel * call.D_channel : nullptr;
    run.skip_channel = call.D_channel;
    run.index = call.index ? call.index + k * call.length : nullptr;
    run.length = call.length, run.state = call.state;
    run.upwards = !call.reverse[k] == !call.adjoint;
    run.accumulate = shared && k > 0;
    run.out = call.out + plane * call.length * call.channels + channel;
    run.out_row = call.channels;
    return run;
}

void run_task(const ScanCall& call, const Cut& cut, int64_t task) {
    const int64_t part = task % cut.runs, group = task / cut.runs % call.groups;
    const int64_t which = task / cut.runs / call.groups;
    const bool all = call.adjoint && call.shared;  // one task adds up the directions
    const int64_t image = all ? which : which / call.directions;
    const int64_t first = all ? 0 : which % call.directions;
    const int64_t last = all ? call.directions : first + 1;
    const int64_t start = part * cut.width;
    const int64_t rest = cut.in_group - start;
    const int64_t channels = rest < cut.width ? rest : cut.width;
    for (int64_t k = first; k < last; k++) {
        const Run run = make_run(call, image, k, group, group * cut.in_group + start);
        call.adjoint ? walk_states<true>(run, channels) : walk_states<false>(run, channels);
    }
}

int64_t tasks(const ScanCall& call) {
    const Cut cut(call);
    return cut.images * call.groups * cut.runs;
}

void run(const ScanCall& call, int64_t first, int64_t last) {
    const FlushDenormals flush;
    const Cut cut(call);
    for (int64_t task = first; task < last; task++) run_task(call, cut, task);
}

}  // namespace

extern const ScanKernel SCAN = {tasks, run};
