// Element-wise functions on the lanes of a register, to the precision of float32.
//
// Relative errors were measured against double over the whole range of float32; results that
// would be smaller than 1.2e-38 may be 0.
#pragma once

#include "lanes.h"

namespace {

INLINE Vec magnitude(Vec x) {
    return (Vec)((Bits)x & 0x7fffffff);
}

// exp(-|x|), relative error below 1.2e-7; NaN stays NaN.
INLINE Vec exp_of_minus(Vec x) {
    x = clamp(-magnitude(x), -88.0f, 0.0f);
    // Adding 1.5 * 2^23 leaves the nearest integer in the low bits of the sum.
    const Vec shifted = x * 1.4426950408889634f + 12582912.0f;
    const Vec n = shifted - 12582912.0f;
    // x - n log 2, the logarithm in two parts, the first so short that its product is exact.
    const Vec r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    // Minimax of exp(r) for |r| <= log(2) / 2 with the first two Taylor coefficients kept.
    Vec p = r * 0.0013814568519592285f + 0.00836873147636652f;
    p = r * p + 0.04166838899254799f;
    p = r * p + 0.1666652113199234f;
    p = r * p + 0.4999999403953552f;
    p = (r * r) * p + r;
    // A factor rather than a sum of bits, so that NaN stays NaN; that of n = -127 is 0.
    return (p + 1.0f) * (Vec)(((Bits)shifted << 23) + (127 << 23));
}

// log(1 + w) for w from 0 to 1, relative error below 1.3e-7: w times a minimax of the quotient.
INLINE Vec log1p_of_fraction(Vec w) {
    Vec p = w * -0.003318474628031254f + 0.020204594358801842f;
    p = w * p + -0.05766446143388748f;
    p = w * p + 0.10680557042360306f;
    p = w * p + -0.15355397760868073f;
    p = w * p + 0.19695401191711426f;
    p = w * p + -0.24958588182926178f;
    p = w * p + 0.33330512046813965f;
    p = w * p + -0.4999993145465851f;
    return w * (w * p + 1.0f);
}

// log(1 + exp(x)) as max(x, 0) + log(1 + exp(-|x|)), which keeps the digits of small values.
INLINE Vec softplus(Vec x) {
    const Vec zero = {};
    return (x > zero ? x : zero) + log1p_of_fraction(exp_of_minus(x));
}

// 1 / (1 + exp(-x)) as a numerator and a denominator, so that a caller divides once.
struct Quotient {
    Vec above, below;
};

INLINE Quotient sigmoid(Vec x) {
    const Vec w = exp_of_minus(x), zero = {};
    return {x < zero ? w : zero + 1.0f, w + 1.0f};
}

// The normal distribution function: erfc(|x| / sqrt 2) / 2, or 1 less that, relative error below
// 3e-7 but for the rounding of x^2 / 2, which counts in tails that hardly count.
INLINE Vec normal_distribution(Vec x) {
    const Vec s = magnitude(x) * 0.7071067811865476f;
    const Vec t = 1.0f / (s * 0.38f + 1.0f);
    // Minimax of erfc(s) exp(s^2) / t for s up to 9.5, beyond which erfc is smaller than 1.2e-38.
    Vec p = t * 0.05887467351995073f + -0.26181206025203274f;
    p = t * p + 0.362842667000764f;
    p = t * p + -0.1602279580360999f;
    p = t * p + 0.2291216976532839f;
    p = t * p + 0.1390609962742834f;
    p = t * p + 0.20379371926286396f;
    p = t * p + 0.21393640601162384f;
    p = t * p + 0.2144098781571841f;
    const Vec tail = 0.5f * t * p * exp_of_minus(s * s), zero = {};
    return x < zero ? tail : 1.0f - tail;
}

}  // namespace
