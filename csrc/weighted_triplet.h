// Weighted regularised triplet loss as an online softmax: each anchor keeps maximum, sum of weights and weighted sum of
// distances over its positives and over its negatives while tiles of distances stream by; no N x N array exists.
#pragma once
#include <cstdint>

#include "isa.h"

namespace vifast {

constexpr double kWrtEps = 1e-6;     // the published normaliser's addend
constexpr float kWrtFloor = 1e-12f;  // least squared distance

// Running softmax of one side: weights exp(sign * d - m), z their sum, t the sum of weight * d.
struct WrtSide {
  double* m;
  double* z;
  double* t;
};

// What the backward needs per anchor, each [n]: slope is dloss/dgap, inv_z the reciprocal of the normaliser.
struct WrtSaved {
  float *slope, *pos_max, *pos_inv_z, *pos_mean, *neg_min, *neg_inv_z, *neg_mean;
};

// Rows [r0, r1) of a tile of distances are anchors.
VIFAST_DECLARE(wrt_fold_rows, (const float* dist, int64_t cols, int64_t r0, int64_t r1, const int32_t* row_labels,
                               const int32_t* col_labels, bool stable, WrtSide pos, WrtSide neg))

// Columns [c0, c1) of the same tile are anchors.
VIFAST_DECLARE(wrt_fold_cols, (const float* dist, int64_t rows, int64_t cols, int64_t c0, int64_t c1, const int32_t* row_labels,
                               const int32_t* col_labels, bool stable, WrtSide pos, WrtSide neg))

// Rows [r0, r1) of a tile of distances d become -(dL/dd_ij + dL/dd_ji) / d_ij; their sums are added to row_sum.
VIFAST_DECLARE(wrt_backward_rows, (float* dist, int64_t cols, int64_t r0, int64_t r1, const int32_t* row_labels,
                                   const int32_t* col_labels, bool stable, WrtSaved row, WrtSaved col, double* row_sum))

}  // namespace vifast
