// Rows divided by their norm, and the gradient through that.
#pragma once
#include <cstdint>

#include "isa.h"

namespace vifast {

constexpr float kLeastRowNorm = 1e-12f;

// inv[r] = 1 / max(|x_r|, kLeastRowNorm) for rows [r0, r1).
VIFAST_DECLARE(inverse_norms, (const float* x, int64_t d, int64_t r0, int64_t r1, double* inv))

// out_r = x_r / max(|x_r|, kLeastRowNorm).
VIFAST_DECLARE(unit_rows, (const float* x, int64_t d, int64_t r0, int64_t r1, float* out))

// out_r = dL/dx_r from grad_r = dL/d(unit x_r); out may be grad.
VIFAST_DECLARE(unit_backward_rows, (const float* grad, const float* x, int64_t d, int64_t r0, int64_t r1, float* out))

}  // namespace vifast
