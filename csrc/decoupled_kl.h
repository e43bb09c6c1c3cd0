// Divergence of rows of logits, decoupled: of the pair (own class, all others), and of the softmax over the others; and its gradient.
#pragma once
#include <cstdint>

#include "isa.h"

namespace vifast {

struct DecoupledRows {
  const float *student, *teacher;
  const int64_t* labels;
  int64_t cols;
  double alpha, beta, temperature;
  double share;  // of a row in what the slope is of
};

constexpr int64_t kDecoupledWork = 2;  // rows of scratch memory

// Rows [r0, r1), of at least two columns: loss [n], and slope [n, cols] unless it is null; work: kDecoupledWork * cols floats of
// this thread's own.
VIFAST_DECLARE(decoupled_kl_rows, (DecoupledRows x, int64_t r0, int64_t r1, float* work, float* loss, float* slope))

}  // namespace vifast
