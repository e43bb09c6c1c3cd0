// exp(max(0, H(q) - H(p) + margin)) - 1 for the softmaxes p of a row of raw and q of the same row of purified.
#pragma once
#include <cstdint>

#include "isa.h"

namespace vifast {

// What the backward needs per row, each [n]: log-sum-exps, entropies, dloss/dH(q).
struct HingeSaved {
  double *lse_p, *lse_q, *h_p, *h_q, *slope;
};

// Rows [r0, r1) of [n, cols] arrays; at least one column.
VIFAST_DECLARE(entropy_hinge_rows, (const float* raw, const float* purified, int64_t cols, double margin, int64_t r0, int64_t r1, float* loss,
                                    HingeSaved saved))

// Gradients of both sides for the upstream grad [n], rows [r0, r1).
VIFAST_DECLARE(entropy_hinge_backward_rows, (const float* raw, const float* purified, int64_t cols, const float* grad, HingeSaved saved,
                                             int64_t r0, int64_t r1, float* grad_raw, float* grad_purified))

}  // namespace vifast
