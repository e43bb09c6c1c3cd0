#include "../memory_update.h"

#include <cmath>

#include "../unit_rows.h"

namespace vifast::VIFAST_ISA {

void row_product(const float* a, const float* b, int64_t d, double* sum) {
  double total = 0;
#pragma omp simd reduction(+ : total)
  for (int64_t k = 0; k < d; ++k) total += static_cast<double>(a[k]) * b[k];
  *sum = total;
}

void blend_unit_row(float* row, const float* step, int64_t d, double keep) {
  const double take = 1 - keep;
  double square = 0;
#pragma omp simd reduction(+ : square)
  for (int64_t k = 0; k < d; ++k) {
    const double u = keep * row[k] + take * step[k];
    square += u * u;
  }
  const double norm = std::sqrt(square), inv = 1 / (norm < kLeastRowNorm ? kLeastRowNorm : norm);  // NaN stays NaN
#pragma omp simd
  for (int64_t k = 0; k < d; ++k) row[k] = static_cast<float>((keep * row[k] + take * step[k]) * inv);
}

}  // namespace vifast::VIFAST_ISA
