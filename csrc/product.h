// Products of rows with rows, A B^T, on packed copies. Not left to BLAS, because a set against itself needs only half of
// them, because packing takes the rows to their mean and sums their squares on the way, and because every element is then
// the same sum in the same order (along the columns, in runs of kDepth) whatever the tile, the block or the thread count.
#pragma once
#include <cstdint>

#include "isa.h"

namespace vifast {

constexpr int64_t kPanel = 16;   // rows packed together
constexpr int64_t kDepth = 256;  // columns summed in registers before the sum goes to memory

// n rows of d columns, `stride` apart, less `mean` (null: as they are) as panels [n / kPanel][d][kPanel], rows beyond n zero;
// sq[r] becomes the squared norm of row r, summed in float32 within kDepth columns and in float64 beyond. Panels [p0, p1).
VIFAST_DECLARE(pack_panels, (const float* x, int64_t stride, int64_t n, int64_t d, const float* mean, int64_t p0, int64_t p1, float* panels,
                             float* sq))

// out[r, c] = a_r . b_c for a tile of `rows` x `cols` beginning at the panels a and b. `upper`: only the blocks of
// kPanel x kPanel that touch the upper triangle. The work is cut into `shares` of equal size, of which this is one.
VIFAST_DECLARE(panel_products, (const float* a, const float* b, int64_t d, int64_t rows, int64_t cols, bool upper, int64_t share,
                                int64_t shares, float* out, int64_t stride))

// out = the sum of `runs` consecutive n x n arrays, in order; of the upper triangle of blocks only.
VIFAST_DECLARE(add_runs, (const float* sums, int64_t runs, int64_t n, float* out))

// The lower triangle of a square tile becomes the mirror of the upper one, rows [r0, r1).
VIFAST_DECLARE(mirror_upper, (float* tile, int64_t n, int64_t r0, int64_t r1))

}  // namespace vifast
