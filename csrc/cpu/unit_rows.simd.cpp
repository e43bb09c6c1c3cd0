#include "../unit_rows.h"

#include <cmath>

namespace vifast::VIFAST_ISA {

namespace {

double inverse_norm(const float* x, int64_t d) {
  double sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t k = 0; k < d; ++k) sum += static_cast<double>(x[k]) * x[k];
  const double norm = std::sqrt(sum);
  return 1 / (norm < kLeastRowNorm ? kLeastRowNorm : norm);  // NaN stays NaN
}

}  // namespace

void inverse_norms(const float* x, int64_t d, int64_t r0, int64_t r1, double* inv) {
  for (int64_t r = r0; r < r1; ++r) inv[r] = inverse_norm(x + r * d, d);
}

void unit_rows(const float* x, int64_t d, int64_t r0, int64_t r1, float* out) {
  for (int64_t r = r0; r < r1; ++r) {
    const double inv = inverse_norm(x + r * d, d);
#pragma omp simd
    for (int64_t k = r * d; k < (r + 1) * d; ++k) out[k] = static_cast<float>(x[k] * inv);
  }
}

void unit_backward_rows(const float* grad, const float* x, int64_t d, int64_t r0, int64_t r1, float* out) {
  for (int64_t r = r0; r < r1; ++r) {
    const float *g = grad + r * d, *row = x + r * d;
    double square = 0, product = 0;
#pragma omp simd reduction(+ : square, product)
    for (int64_t k = 0; k < d; ++k) {
      square += static_cast<double>(row[k]) * row[k];
      product += static_cast<double>(g[k]) * row[k];
    }
    const double norm = std::sqrt(square), inv = 1 / (norm < kLeastRowNorm ? kLeastRowNorm : norm), along = product * inv * inv;
#pragma omp simd
    for (int64_t k = 0; k < d; ++k) out[r * d + k] = static_cast<float>((g[k] - along * row[k]) * inv);
  }
}

}  // namespace vifast::VIFAST_ISA
