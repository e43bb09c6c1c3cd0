// Divergence between the rows of two graphs of the same nodes, as online softmaxes over tiles of distances u and v. Rows are
// summed in float64: the divergence of near graphs is far smaller than its terms.
#pragma once
#include <cstdint>

#include "isa.h"

namespace vifast {

// What a tile holds and what its softmax sees: logit = scale * value. root: values are roots of squares clamped at `floor`.
struct GraphKind {
  bool root;
  double scale;
  float floor;
};

// Running softmax of one graph: weights exp(logit - m), z their sum, t the sum of weight * (logit of v - logit of u).
struct GraphSide {
  double* m;
  double* z;
  double* t;
};

// What the backward needs per row: gradient of its loss, and of both softmaxes the largest logit, 1 / sum and mean difference.
struct GraphSaved {
  const double *grad, *u_max, *u_inv_z, *u_mean, *v_max, *v_inv_z, *v_mean;
};

// Rows [r0, r1) of both tiles are rows of the graphs. skip_own: column r of row r takes no part.
VIFAST_DECLARE(graph_fold_rows, (const float* u, const float* v, int64_t cols, int64_t r0, int64_t r1, bool skip_own, double scale,
                                 GraphSide p, GraphSide q))

// Columns [c0, c1) of the same tiles are rows of the graphs.
VIFAST_DECLARE(graph_fold_cols, (const float* u, const float* v, int64_t rows, int64_t cols, int64_t c0, int64_t c1, double scale,
                                 GraphSide p, GraphSide q))

// Rows [r0, r1) of both tiles become the factors of x_c in the gradient of x_r, less those of x_r itself: -(dL/dd_rc + dL/dd_cr)
// times the slope of the distance. Their sums are added to u_sum and v_sum. own: column r of row r becomes 0.
VIFAST_DECLARE(graph_backward_rows, (float* u, float* v, int64_t cols, int64_t r0, int64_t r1, bool own, GraphKind kind, bool symmetric,
                                     GraphSaved row, GraphSaved col, double* u_sum, double* v_sum))

}  // namespace vifast
