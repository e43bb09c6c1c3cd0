#include "../prototype_alignment.h"

#include <cmath>

#include "distance-inl.h"

namespace vifast::VIFAST_ISA {

namespace {

double inner(const float* a, const float* b, int64_t d) {
  double sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t k = 0; k < d; ++k) sum += static_cast<double>(a[k]) * b[k];
  return sum;
}

}  // namespace

void relation_rows(float* tile, int64_t cols, int64_t r0, int64_t r1, const double* inv_f, const double* inv_p, double tau) {
  for (int64_t r = r0; r < r1; ++r) {
    float* row = tile + r * cols;
    const double factor = inv_f[r] / tau;
    double top = -INFINITY;
#pragma omp simd reduction(max : top)
    for (int64_t c = 0; c < cols; ++c) {
      const double logit = factor * row[c] * inv_p[c];
      top = logit > top ? logit : top;
    }
    double squares = 0;
#pragma omp simd reduction(+ : squares)
    for (int64_t c = 0; c < cols; ++c) {
      const double e = exp_inline(factor * row[c] * inv_p[c] - top);
      squares += e * e;
      row[c] = static_cast<float>(e);
    }
    const float inv = static_cast<float>(1 / std::sqrt(squares));
#pragma omp simd
    for (int64_t c = 0; c < cols; ++c) row[c] *= inv;
  }
}

void relation_backward_rows(float* grad, const float* unit, int64_t cols, int64_t r0, int64_t r1, const double* inv_p, double tau) {
  for (int64_t r = r0; r < r1; ++r) {
    float* g = grad + r * cols;
    const float* w = unit + r * cols;
    const double along = inner(g, w, cols);
#pragma omp simd
    for (int64_t c = 0; c < cols; ++c) g[c] = static_cast<float>(w[c] * (g[c] - along * w[c]) * inv_p[c] / tau);
  }
}

}  // namespace vifast::VIFAST_ISA
