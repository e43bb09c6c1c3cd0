// Exact mining of the hardest positive and negative of every anchor behind a tiled matrix product.
//
// A product gives squared distances up to a proven error; an anchor keeps every partner whose value may still be the best
// (a handful), and `hard_finish` decides among them by direct difference, summed in float64. The answer is therefore a function of
// the features alone: no tile size, thread count or BLAS can change it, and equal features tie exactly, to the lower index.
#pragma once
#include <cstdint>

#include "isa.h"

namespace vifast {

constexpr int kHardSlots = 16;  // candidates kept per anchor and side; more near-ties than that and the row is rescanned
constexpr float kHardFloor = 1e-12f;  // least squared distance under a root

// One side (positives or negatives) of the running state of n anchors.
struct HardSide {
  float* best;      // [n] smallest upper bound of the key seen so far
  int32_t* count;   // [n] candidates held, kHardSlots + 1 once any was dropped
  float* lower;     // [n, kHardSlots] lower bound of a candidate's key
  int32_t* index;   // [n, kHardSlots] its row in the reference set
};

// |computed - true| of the product form is at most `slack` * (||a||^2 + ||b||^2) for centred rows of length d: the dot
// product's gamma_d, and the rounding of the centring, the norms and the final sum, in any order of summation.
inline float hard_slack(int64_t d) {
  const double u = 1.0 / (1 << 24);
  const double n = static_cast<double>(d) + 24;
  return static_cast<float>(n * u / (1 - n * u));
}

VIFAST_DECLARE(hard_begin, (HardSide side, int64_t r0, int64_t r1))

// Rows [r0, r1) of the tile are anchors row0 + r, its columns references col0 + c.
VIFAST_DECLARE(hard_fold_rows,
               (const float* tile, int64_t cols, int64_t r0, int64_t r1, int64_t col0, const int32_t* row_labels,
                const int32_t* col_labels, const float* row_sq, const float* col_sq, float slack, HardSide pos, HardSide neg))

// The same tile read the other way: columns [c0, c1) are anchors, rows are references row0 + r.
VIFAST_DECLARE(hard_fold_cols,
               (const float* tile, int64_t rows, int64_t cols, int64_t c0, int64_t c1, int64_t row0, const int32_t* row_labels,
                const int32_t* col_labels, const float* row_sq, const float* col_sq, float slack, HardSide pos, HardSide neg))

// How a squared distance sq becomes the distance that is mined: sqrt(max(sq, kHardFloor)), or scale * sq.
struct HardMetric {
  bool root;
  float scale;
};

// Distances and indices for anchors [r0, r1): best candidate by direct difference, lower index on ties; no partner gives
// index -1 and -inf (positive) or +inf (negative); a non-finite partner gives NaN and its index.
VIFAST_DECLARE(hard_finish,
               (const float* feat, const float* reference, int64_t m, int64_t d, int64_t r0, int64_t r1, const int32_t* labels,
                const int32_t* ref_labels, const float* sq, const float* ref_sq, const int64_t* bad, int64_t n_bad, bool positive,
                HardMetric metric, HardSide side, float* dist, int64_t* index))

// out[r] = sum over entries [begin[r], begin[r + 1]) of weight * (self[r] - other[partner]), in order, for rows [r0, r1).
VIFAST_DECLARE(weighted_differences,
               (const float* self, const float* other, int64_t d, int64_t r0, int64_t r1, const int64_t* begin,
                const int64_t* partner, const float* weight, float* out))

}  // namespace vifast
