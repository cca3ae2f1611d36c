// Neighbouring channels in the lanes of one register, for the instruction set that the compiler
// was told to use. Everything here has internal linkage: a function shared between compilations
// could reach a processor that lacks the instructions.
#pragma once

#include <cstdint>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

// Vectors of the compiler's own: arithmetic on them is plain C++ on every processor.
using Vec = float __attribute__((vector_size(4 * kLanes)));
using Bits = int32_t __attribute__((vector_size(4 * kLanes)));

#define INLINE inline __attribute__((always_inline))

INLINE Vec clamp(Vec x, float low, float high) {
    // The order of operands lets NaN through.
#if defined(__AVX512F__)
    return _mm512_max_ps(_mm512_set1_ps(low), _mm512_min_ps(_mm512_set1_ps(high), x));
#elif defined(__AVX2__)
    return _mm256_max_ps(_mm256_set1_ps(low), _mm256_min_ps(_mm256_set1_ps(high), x));
#else
    const Vec below = low + Vec{}, above = high + Vec{};
    x = above < x ? above : x;
    return below > x ? below : x;
#endif
}

// 2^x: relative error below 1.7e-7 in float32, exact at integers and so at 0, where a bias would
// grow with the length of the sequence; 0 up to -127, infinite from 128.
INLINE Vec exp2(Vec x) {
    x = clamp(x, -127.0f, 128.0f);
    // Adding 1.5 * 2^23 leaves the nearest integer in the low bits of the sum.
    const Vec shifted = x + 12582912.0f;
    const Vec r = x - (shifted - 12582912.0f);
    // Minimax of 2^r for |r| <= 1/2 with the first two Taylor coefficients kept.
    Vec p = r * 0.001330026425421238f + 0.009669708088040352f;
    p = r * p + 0.055505599826574326f;
    p = r * p + 0.24022281169891357f;
    p = r * p + 0.6931471824645996f;
    p = r * p + 1.0f;
    return (Vec)((Bits)p + ((Bits)shifted << 23));
}

// One unaligned instruction each; rows may start anywhere.
INLINE Vec load(const float* from) {
    Vec x;
    __builtin_memcpy(&x, from, sizeof x);
    return x;
}

INLINE void store(float* to, Vec x) {
    __builtin_memcpy(to, &x, sizeof x);
}

// The last channels of a row, fewer than a register holds; the other lanes are 0.
INLINE Vec load_some(const float* from, int count) {
    Vec x = {};
    for (int i = 0; i < count; i++) x[i] = from[i];
    return x;
}

INLINE void store_some(float* to, Vec x, int count) {
    for (int i = 0; i < count; i++) to[i] = x[i];
}

// While it lives, numbers below 1e-38 count as 0: a state that dies away costs no time.
class FlushDenormals {
  public:
#if defined(__AVX2__)
    FlushDenormals() : before_(_mm_getcsr()) { _mm_setcsr(before_ | 0x8040); }
    ~FlushDenormals() { _mm_setcsr(before_); }

  private:
    unsigned before_;
#else
    FlushDenormals() {}
    ~FlushDenormals() {}
#endif
};

}  // namespace
