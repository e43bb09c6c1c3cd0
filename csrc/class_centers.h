// Means of the rows of a class. Rows are grouped by a stable counting sort, so a sum has one order whatever the threads.
#pragma once
#include <cstdint>

#include "isa.h"

namespace vifast {

// mean[d] = mean of x[rows[i]] for i < count, summed in float64 in the order given; zeros where count is 0.
VIFAST_DECLARE(mean_of_rows, (const float* x, int64_t d, const int64_t* rows, int64_t count, float* mean))

// Both sides of one identity: diff[d] = mean over `a` - mean over `b` + offset, and *norm its length.
VIFAST_DECLARE(difference_of_means, (const float* x, int64_t d, const int64_t* a, int64_t n_a, const int64_t* b, int64_t n_b, float offset,
                                     float* diff, double* norm))

// out[rows[i]] = weight * diff for i < count.
VIFAST_DECLARE(scatter_row, (const float* diff, int64_t d, double weight, const int64_t* rows, int64_t count, float* out))

}  // namespace vifast
