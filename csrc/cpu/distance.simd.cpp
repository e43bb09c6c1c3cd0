#include "../distance.h"

#include <cmath>

#include "distance-inl.h"

namespace vifast::VIFAST_ISA {

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

// Sums of squares in float32 over short runs and in float64 over the runs: as accurate as float64, at float32 speed.
static float square_sum(const float* x, int64_t d) {
  double total = 0;
  for (int64_t start = 0; start < d; start += 256) {
    const int64_t stop = start + 256 < d ? start + 256 : d;
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t k = start; k < stop; ++k) sum += x[k] * x[k];
    total += sum;
  }
  return static_cast<float>(total);
}

void center_rows(const float* x, int64_t d, const float* mean, int64_t r0, int64_t r1, float* centered) {
  for (int64_t r = r0; r < r1; ++r) {
    const float* in = x + r * d;
    float* out = centered + r * d;
#pragma omp simd
    for (int64_t k = 0; k < d; ++k) out[k] = in[k] - mean[k];
  }
}

void row_norms(const float* x, int64_t d, int64_t r0, int64_t r1, float* sq) {
  for (int64_t r = r0; r < r1; ++r) sq[r] = square_sum(x + r * d, d);
}

void products_to_distances(float* tile, int64_t cols, int64_t r0, int64_t r1, const float* a, const float* b, int64_t d,
                           const float* sq_a, const float* sq_b, float floor, bool root) {
  for (int64_t r = r0; r < r1; ++r) {
    float* row = tile + r * cols;
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

}  // namespace vifast::VIFAST_ISA
