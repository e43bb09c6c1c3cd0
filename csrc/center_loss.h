// Squared distances of rows to the centers of their classes, and both gradients.
#pragma once
#include <cstdint>

#include "isa.h"

namespace vifast {

// square[i] = ||x_i - centers_{codes[i]}||^2 for rows [r0, r1), 0 of a code outside 0 .. k-1.
VIFAST_DECLARE(center_distances, (const float* x, const int64_t* codes, const float* centers, int64_t k, int64_t d, int64_t r0, int64_t r1,
                                  double* square))

// Columns [c0, c1) of the gradients of one class, whose rows are `rows`: weight (x_i - center) of each row, and minus their sum, in
// the order given, of the center. Either may be null.
VIFAST_DECLARE(center_pull, (const float* x, int64_t d, const float* center, const int64_t* rows, int64_t count, float weight, int64_t c0,
                             int64_t c1, float* to_x, float* to_center))

}  // namespace vifast
