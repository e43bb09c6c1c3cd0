#include "../class_centers.h"

#include <cmath>

namespace vifast::VIFAST_ISA {

namespace {

constexpr int64_t kChunk = 256;  // columns summed at once

void sum_rows(const float* x, int64_t d, int64_t c0, int64_t width, const int64_t* rows, int64_t count, double* sum) {
  for (int64_t k = 0; k < width; ++k) sum[k] = 0;
  for (int64_t i = 0; i < count; ++i) {
    const float* row = x + rows[i] * d + c0;
#pragma omp simd
    for (int64_t k = 0; k < width; ++k) sum[k] += row[k];
  }
}

}  // namespace

void mean_of_rows(const float* x, int64_t d, const int64_t* rows, int64_t count, float* mean) {
  double sum[kChunk];
  const double weight = count > 0 ? 1.0 / static_cast<double>(count) : 0.0;
  for (int64_t c = 0; c < d; c += kChunk) {
    const int64_t width = d - c < kChunk ? d - c : kChunk;
    sum_rows(x, d, c, width, rows, count, sum);
#pragma omp simd
    for (int64_t k = 0; k < width; ++k) mean[c + k] = static_cast<float>(sum[k] * weight);
  }
}

void difference_of_means(const float* x, int64_t d, const int64_t* a, int64_t n_a, const int64_t* b, int64_t n_b, float offset, float* diff,
                         double* norm) {
  double sum_a[kChunk], sum_b[kChunk], squares = 0;
  const double w_a = 1.0 / static_cast<double>(n_a), w_b = 1.0 / static_cast<double>(n_b);
  for (int64_t c = 0; c < d; c += kChunk) {
    const int64_t width = d - c < kChunk ? d - c : kChunk;
    sum_rows(x, d, c, width, a, n_a, sum_a);
    sum_rows(x, d, c, width, b, n_b, sum_b);
#pragma omp simd reduction(+ : squares)
    for (int64_t k = 0; k < width; ++k) {
      const double t = sum_a[k] * w_a - sum_b[k] * w_b + offset;
      diff[c + k] = static_cast<float>(t);
      squares += t * t;
    }
  }
  *norm = std::sqrt(squares);
}

void scatter_row(const float* diff, int64_t d, double weight, const int64_t* rows, int64_t count, float* out) {
  for (int64_t i = 0; i < count; ++i) {
    float* row = out + rows[i] * d;
#pragma omp simd
    for (int64_t k = 0; k < d; ++k) row[k] = static_cast<float>(weight * diff[k]);
  }
}

}  // namespace vifast::VIFAST_ISA
