// Squared Euclidean distances around a matrix product: ||a - b||^2 = ||a||^2 + ||b||^2 - 2 a.b, with the two remedies that
// keep it accurate in float32. Rows are first moved to their common mean, which changes no distance and removes the
// cancellation that a shared offset causes; pairs that are still close relative to their norms are done by direct difference.
#pragma once
#include <cstdint>

#include "isa.h"

namespace vifast {

// Below this ratio of ||a-b||^2 to ||a||^2 + ||b||^2 the product form has lost more than five bits: take the difference.
constexpr float kClosePair = 1.0f / 64;

// mean[c] += x[., c] / total over the finite entries of columns [c0, c1). Any origin is right, so this one need not be exact.
VIFAST_DECLARE(column_means, (const float* x, int64_t n, int64_t d, int64_t total, int64_t c0, int64_t c1, float* mean))

// centered[r] = x[r] - mean for rows [r0, r1), 0 where an entry is not finite: such rows spoil what their weights say, no more.
VIFAST_DECLARE(center_rows, (const float* x, int64_t d, const float* mean, int64_t r0, int64_t r1, float* centered))

// Rows [r0, r1) of a tile of products a_r . b_c, `stride` apart, become distances in place: squared, clamped at `floor`, rooted
// if asked. a, b: the original rows of the tile (not centred), sq_a, sq_b: squared norms of the centred ones.
VIFAST_DECLARE(products_to_distances,
               (float* tile, int64_t stride, int64_t cols, int64_t r0, int64_t r1, const float* a, const float* b, int64_t d,
                const float* sq_a, const float* sq_b, float floor, bool root))

// Sums of columns [c0, c1) of a tile, added to col_sum.
VIFAST_DECLARE(add_column_sums, (const float* tile, int64_t rows, int64_t cols, int64_t c0, int64_t c1, double* col_sum))

}  // namespace vifast
