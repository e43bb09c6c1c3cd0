// Generalised mean of planes, see kernels/gem_pool.py for the formulas.
#pragma once
#include <cstdint>

#include "isa.h"

namespace vifast {

struct Gem {
  float p, eps;
  bool clamp;
};

// out[k] for n planes x [n, positions].
VIFAST_DECLARE(gem_forward, (const float* x, int64_t n, int64_t positions, Gem gem, float* out))

// grad, out: [n], of the pooled value and itself; grad_x [n, positions]; grad_p [n] or null.
VIFAST_DECLARE(gem_backward, (const float* x, int64_t n, int64_t positions, Gem gem, const float* grad, const float* out, float* grad_x,
                              float* grad_p))

}  // namespace vifast
