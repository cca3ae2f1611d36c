// Rows of neighbouring channels, walked a register at a time.
#pragma once

#include "lanes.h"

namespace {

// The channels of a row from `channel` on: a whole register of them, or fewer at its end. kWhole
// says that there are no fewer, which spares loops that are short of instructions the question.
template <bool kWhole>
struct Part {
    int64_t channel;
    int count;

    Part(int64_t channels, int64_t first) : channel(first) {
        const int64_t rest = channels - first;
        count = static_cast<int>(rest < kLanes ? rest : kLanes);
    }

    INLINE bool full() const { return kWhole || count == kLanes; }

    INLINE Vec read(const float* row) const {
        return full() ? load(row + channel) : load_some(row + channel, count);
    }

    INLINE void write(float* row, Vec x) const {
        full() ? store(row + channel, x) : store_some(row + channel, x, count);
    }

    // The same with zeros in the lanes beyond the row's end.
    INLINE Vec within(Vec x) const {
        if (!full()) {
            for (int i = count; i < kLanes; i++) x[i] = 0;
        }
        return x;
    }
};

INLINE float total(Vec x) {
    float sum = 0;
    for (int i = 0; i < kLanes; i++) sum += x[i];
    return sum;
}

}  // namespace
