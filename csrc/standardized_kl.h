// Tempered divergence of standardised rows of logits and its gradient, both from one visit of a row.
#pragma once
#include <cstdint>

#include "isa.h"

namespace vifast {

// One temperature. `power`: e^(z / T) is that power of e^(z / 12), which 2, 3, 4, 6 and 12 share; 0: an exponential of its own.
struct Temperature {
  float inverse;
  int32_t power;
  double weight;  // w_T T, times T for the value
};

struct SklRows {
  const float *student, *teacher;
  int64_t cols;
  const float* scale;  // [n, scale_cols] factors of rows (1 column) or of rows and temperatures; null: 1
  int64_t scale_cols;
  const Temperature* temperatures;
  int64_t n_temperatures;
  bool shared;  // whether any power is not 0
  bool standardize;
  int64_t ddof;
  double eps;
};

constexpr int64_t kSklWork = 8;  // rows of scratch memory

// Rows [r0, r1): loss [n], and slope [n, cols] unless it is null; work: kSklWork * cols floats of this thread's own.
VIFAST_DECLARE(standardized_kl_rows, (SklRows x, int64_t r0, int64_t r1, float* work, float* loss, float* slope))

}  // namespace vifast
