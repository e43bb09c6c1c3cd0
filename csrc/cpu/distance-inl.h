// Included by *.simd.cpp only: one copy per instruction set, in that set's namespace.
#pragma once
#include <cstdint>

#include "exp-inl.h"

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

}  // namespace vifast::VIFAST_ISA
