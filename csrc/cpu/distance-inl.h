// Included by *.simd.cpp only: one copy per instruction set, in that set's namespace.
#pragma once
#include <cstdint>
#include <cstring>

namespace vifast::VIFAST_ISA {

// ||a - b||^2 by direct difference, summed in float64: equal rows give 0 and equal pairs equal values.
static inline double direct_sqdist(const float* a, const float* b, int64_t d) {
  double sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t k = 0; k < d; ++k) {
    const float t = a[k] - b[k];
    sum += static_cast<double>(t) * t;
  }
  return sum;
}

// Columns of a tile become rows of a buffer a few at a time, so that one row routine serves both ways of reading a tile.
constexpr int64_t kFlipCols = 16, kFlipRows = 256;

// out[c][r] = tile[r0 + r][c0 + c] for n_rows <= kFlipRows and n_cols <= kFlipCols.
static inline void flip(const float* tile, int64_t cols, int64_t r0, int64_t n_rows, int64_t c0, int64_t n_cols,
                        float out[kFlipCols][kFlipRows]) {
  for (int64_t r = 0; r < n_rows; ++r) {
    const float* row = tile + (r0 + r) * cols + c0;
    for (int64_t c = 0; c < n_cols; ++c) out[c][r] = row[c];
  }
}

// e^x to 2 ulp for x in [-87, 88], clamped outside; written so that compilers vectorise it (no calls, no branches).
static inline float exp_inline(float x) {
  x = x < -87.0f ? -87.0f : x;
  x = x > 88.0f ? 88.0f : x;
  const float shifted = x * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: the low mantissa bits now hold round(x / ln 2)
  const float n = shifted - 12582912.0f;
  float r = x - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const int32_t bits = (static_cast<int32_t>(n) + 127) << 23;
  float scale;
  std::memcpy(&scale, &bits, sizeof(scale));
  return p * scale;
}

}  // namespace vifast::VIFAST_ISA
