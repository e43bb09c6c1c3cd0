#include "../percentile_mask.h"

#include "softmax-inl.h"

namespace vifast::VIFAST_ISA {

void softmax_confidence_rows(const float* logits, int64_t cols, int64_t r0, int64_t r1, float* out) {
  for (int64_t r = r0; r < r1; ++r) {
    const float* x = logits + r * cols;
    const float top = row_max(x, cols, -INFINITY);
    double z = 0;
    for (int64_t j0 = 0; j0 < cols; j0 += kRun) {
      const int64_t j1 = cols - j0 < kRun ? cols : j0 + kRun;
      float sum = 0;
#pragma omp simd reduction(+ : sum)
      for (int64_t j = j0; j < j1; ++j) sum += exp_below(x[j] - top);
      z += sum;
    }
    out[r] = static_cast<float>(1.0 / z);
  }
}

}  // namespace vifast::VIFAST_ISA
