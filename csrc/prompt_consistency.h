// Mean absolute difference of two arrays and its gradient, see kernels/prompt_consistency.py.
#pragma once
#include <cstdint>

#include "isa.h"

namespace vifast {

// Sum of |a - b| over n elements.
VIFAST_DECLARE(absolute_difference, (const float* a, const float* b, int64_t n, double* sum))

// out = scale sign(a - b) over n elements; 0 where they are equal, or either is NaN.
VIFAST_DECLARE(difference_sign, (const float* a, const float* b, int64_t n, float scale, float* out))

}  // namespace vifast
