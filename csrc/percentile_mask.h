// Which rows are at least (or at most) as confident as a percentile of their batch, and the confidence of a row.
#pragma once
#include <cstdint>

#include "isa.h"

namespace vifast {

// out[r] = max_j softmax(logits_r)_j for rows [r0, r1) of [n, cols]; at least one column.
VIFAST_DECLARE(softmax_confidence_rows, (const float* logits, int64_t cols, int64_t r0, int64_t r1, float* out))

// mask[i] = confidence[i] >= (high) or <= the q-th percentile of all, by linear interpolation; 0 for a NaN, which does not count.
void percentile_mask(const float* confidence, int64_t n, double q, bool high, float* mask);

}  // namespace vifast
