// Neighbor-probability loss as an online softmax: each row keeps the least distance, the sum of weights and the sum of distances to
// its positives while tiles of distances stream by. A pair whose distance is not finite does not exist, nor does a row beside itself,
// which the caller marks so.
#pragma once
#include <cstdint>

#include "isa.h"

namespace vifast {

// Running state: weights exp(factor * (least - d)), z their sum; near the sum of distances of count positives.
struct NeighborState {
  double *least, *z, *near, *count;
};

// How a distance d counts: its logit is -factor * d. root: d is sqrt(max(d^2, floor)), otherwise d^2.
struct NeighborKind {
  bool root;
  float floor, factor;
};

// What the backward needs of each row: its least distance; factor times the gradient of its loss, over z and over its positives.
struct NeighborSaved {
  const float *least, *weight, *share;
};

// Rows [r0, r1) of a tile of distances look for neighbors among its columns.
VIFAST_DECLARE(neighbor_fold_rows, (const float* dist, int64_t cols, int64_t r0, int64_t r1, const int32_t* row_labels,
                                    const int32_t* col_labels, float factor, NeighborState state))

// Columns [c0, c1) of the same tile do among its rows.
VIFAST_DECLARE(neighbor_fold_cols, (const float* dist, int64_t rows, int64_t cols, int64_t c0, int64_t c1, const int32_t* row_labels,
                                    const int32_t* col_labels, float factor, NeighborState state))

// Rows [r0, r1) of a tile of distances become the factors w_ij of differences x_j - x_i in the gradient, and their sums are added to
// row_sum. both: columns look among the rows as well.
VIFAST_DECLARE(neighbor_backward_rows, (float* dist, int64_t cols, int64_t r0, int64_t r1, const int32_t* row_labels,
                                        const int32_t* col_labels, NeighborKind kind, bool both, NeighborSaved row, NeighborSaved col,
                                        double* row_sum))

}  // namespace vifast
