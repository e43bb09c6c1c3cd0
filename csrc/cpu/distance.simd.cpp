#include "../distance.h"

#include <cmath>

#include "distance-inl.h"

namespace vifast::VIFAST_ISA {

namespace {

constexpr int64_t kLanes = 64;  // columns summed at once

}  // namespace

void column_means(const float* x, int64_t n, int64_t d, int64_t total, int64_t c0, int64_t c1, float* mean) {
  const float weight = 1.0f / static_cast<float>(total);
  for (int64_t r = 0; r < n; ++r) {
    const float* row = x + r * d;
#pragma omp simd
    for (int64_t c = c0; c < c1; ++c) {
      const bool finite = std::fabs(row[c]) <= 3.4028234e38f;  // one bad row must not move everybody's origin to NaN
      mean[c] += finite ? weight * row[c] : 0.0f;
    }
  }
}

void center_rows(const float* x, int64_t d, const float* mean, int64_t r0, int64_t r1, float* centered) {
  for (int64_t r = r0; r < r1; ++r) {
    const float* in = x + r * d;
    float* out = centered + r * d;
#pragma omp simd
    for (int64_t k = 0; k < d; ++k) out[k] = std::fabs(in[k]) <= 3.4028234e38f ? in[k] - mean[k] : 0.0f;
  }
}

void products_to_distances(float* tile, int64_t stride, int64_t cols, int64_t r0, int64_t r1, const float* a, const float* b, int64_t d,
                           const float* sq_a, const float* sq_b, float floor, bool root) {
  for (int64_t r = r0; r < r1; ++r) {
    float* row = tile + r * stride;
    const float sa = sq_a[r];
    int close = 0;
#pragma omp simd reduction(| : close)
    for (int64_t c = 0; c < cols; ++c) {
      const float both = sa + sq_b[c];
      const float sq = both - 2.0f * row[c];
      close |= sq < kClosePair * both;
      row[c] = sq;
    }
    if (close) {
      for (int64_t c = 0; c < cols; ++c) {
        if (row[c] < kClosePair * (sa + sq_b[c])) row[c] = static_cast<float>(direct_sqdist(a + r * d, b + c * d, d));
      }
    }
#pragma omp simd
    for (int64_t c = 0; c < cols; ++c) {
      const float sq = row[c] < floor ? floor : row[c];  // NaN stays NaN
      row[c] = root ? std::sqrt(sq) : sq;
    }
  }
}

void add_column_sums(const float* tile, int64_t rows, int64_t cols, int64_t c0, int64_t c1, double* col_sum) {
  for (int64_t c = c0; c < c1; c += kLanes) {
    const int64_t n = c1 - c < kLanes ? c1 - c : kLanes;
    float sum[kLanes] = {};
    for (int64_t r = 0; r < rows; ++r) {
#pragma omp simd
      for (int64_t k = 0; k < n; ++k) sum[k] += tile[r * cols + c + k];
    }
    for (int64_t k = 0; k < n; ++k) col_sum[c + k] += sum[k];
  }
}

}  // namespace vifast::VIFAST_ISA
