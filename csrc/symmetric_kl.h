// KL divergence of matching rows of logits in both directions. Row r of `rows` is the rows r, r + rows, ... of a
// [groups * rows, cols] array laid side by side; nothing is copied.
#pragma once
#include <cstdint>

#include "isa.h"

namespace vifast {

struct LogitPairs {
  const float *a, *b;
  int64_t rows, groups, cols;
};

// What the backward needs per row, each [rows]: log-sum-exps, KL(p || q), KL(q || p).
struct KlSaved {
  double *lse_a, *lse_b, *kl_pq, *kl_qp;
};

// Rows [r0, r1); at least one column.
VIFAST_DECLARE(symmetric_kl_rows, (LogitPairs x, int64_t r0, int64_t r1, float* loss, KlSaved saved))

// Gradients of both sides for the upstream grad [rows], rows [r0, r1).
VIFAST_DECLARE(symmetric_kl_backward_rows, (LogitPairs x, const float* grad, KlSaved saved, int64_t r0, int64_t r1, float* grad_a, float* grad_b))

}  // namespace vifast
