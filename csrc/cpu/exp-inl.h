// Included by *.simd.cpp only: exponentials without calls or branches, so that compilers vectorise them.
#pragma once
#include <cstdint>
#include <cstring>

namespace vifast::VIFAST_ISA {

// e^x = p 2^n for |x| < 88, p to 2 ulp; returns p. F is float or a vector of floats.
template <class F>
static inline F exp_parts(F x, F& n) {
  const F shifted = x * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: the low mantissa bits now hold round(x / ln 2)
  n = shifted - 12582912.0f;
  F r = x - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  F p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  return p * r * r + r + 1.0f;
}

// e^x for x in [-87, 88].
static inline float exp_within(float x) {
  float n;
  const float p = exp_parts(x, n);
  const int32_t bits = (static_cast<int32_t>(n) + 127) << 23;
  float scale;
  std::memcpy(&scale, &bits, sizeof(scale));
  return p * scale;
}

// e^x clamped outside [-87, 88].
static inline float exp_inline(float x) {
  x = x < -87.0f ? -87.0f : x;
  return exp_within(x > 88.0f ? 88.0f : x);
}

// e^x in double, to 2e-15 for x in [-708, 709], clamped outside.
static inline double exp_inline(double x) {
  x = x < -708.0 ? -708.0 : x;
  x = x > 709.0 ? 709.0 : x;
  const double shifted = x * 1.4426950408889634 + 6755399441055744.0;  // 1.5 * 2^52
  const double n = shifted - 6755399441055744.0;
  double r = x - n * 6.93147180369123816490e-1;
  r = r - n * 1.90821492927058770002e-10;
  double p = 1.0 / 479001600;  // 1 / 12!, and so on up
  p = p * r + 1.0 / 39916800;
  p = p * r + 1.0 / 3628800;
  p = p * r + 1.0 / 362880;
  p = p * r + 1.0 / 40320;
  p = p * r + 1.0 / 5040;
  p = p * r + 1.0 / 720;
  p = p * r + 1.0 / 120;
  p = p * r + 1.0 / 24;
  p = p * r + 1.0 / 6;
  p = p * r + 0.5;
  p = p * r * r + r + 1.0;
  uint64_t bits;
  std::memcpy(&bits, &shifted, sizeof(bits));
  bits = (bits + 1023) << 52;  // the low mantissa bits of shifted are n; there is no vector conversion to integers before AVX-512
  double scale;
  std::memcpy(&scale, &bits, sizeof(scale));
  return p * scale;
}

}  // namespace vifast::VIFAST_ISA
