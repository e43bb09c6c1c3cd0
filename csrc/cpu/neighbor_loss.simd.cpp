#include "../neighbor_loss.h"

#include <cmath>

#include "distance-inl.h"

namespace vifast::VIFAST_ISA {

namespace {

constexpr float kLargest = 3.4028234e38f;

void fold_row(const float* row, int64_t cols, int32_t label, const int32_t* labels, float factor, NeighborState s, int64_t i) {
  float nearest = INFINITY;
#pragma omp simd reduction(min : nearest)
  for (int64_t c = 0; c < cols; ++c) nearest = row[c] < nearest ? row[c] : nearest;
  if (!(nearest <= kLargest)) return;
  if (nearest < s.least[i]) {
    s.z[i] *= std::exp(factor * (nearest - s.least[i]));
    s.least[i] = nearest;
  }
  const float least = static_cast<float>(s.least[i]);
  float z = 0, near = 0, count = 0;
#pragma omp simd reduction(+ : z, near, count)
  for (int64_t c = 0; c < cols; ++c) {
    const bool exists = row[c] <= kLargest;
    const float d = exists ? row[c] : 0.0f;
    const float e = exp_inline(factor * (least - d));
    const float own = exists & (label == labels[c]) ? 1.0f : 0.0f;
    z += exists ? e : 0.0f;
    near += own * d;
    count += own;
  }
  s.z[i] += z;
  s.near[i] += near;
  s.count[i] += count;
}

// dL/dd of a pair, where the row or the column looks at the other.
inline float coefficient(float d, bool same, float factor, float least, float weight, float share) {
  return (same ? share : 0.0f) - weight * exp_inline(factor * (least - d));
}

template <bool Root, bool Both>
void weigh_row(float* row, int64_t cols, int32_t label, const int32_t* labels, NeighborKind kind, NeighborSaved a, int64_t r, NeighborSaved b,
               double* row_sum) {
  const float least = a.least[r], weight = a.weight[r], share = a.share[r];
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t c = 0; c < cols; ++c) {
    const bool exists = row[c] <= kLargest, same = label == labels[c];
    const float d = exists ? row[c] : 1.0f;
    float pull = coefficient(d, same, kind.factor, least, weight, share);
    if (Both) pull += coefficient(d, same, kind.factor, b.least[c], b.weight[c], b.share[c]);
    const bool counts = exists & !(Root && d * d <= kind.floor * 1.0001f);  // no gradient through a clamped entry
    const float w = counts ? -(Root ? pull / d : 2 * pull) : 0.0f;
    row[c] = w;
    sum += w;
  }
  row_sum[r] += sum;
}

}  // namespace

void neighbor_fold_rows(const float* dist, int64_t cols, int64_t r0, int64_t r1, const int32_t* row_labels, const int32_t* col_labels,
                        float factor, NeighborState state) {
  for (int64_t r = r0; r < r1; ++r) fold_row(dist + r * cols, cols, row_labels[r], col_labels, factor, state, r);
}

void neighbor_fold_cols(const float* dist, int64_t rows, int64_t cols, int64_t c0, int64_t c1, const int32_t* row_labels,
                        const int32_t* col_labels, float factor, NeighborState state) {
  float flipped[kFlipCols][kFlipRows];
  for (int64_t c = c0; c < c1; c += kFlipCols) {
    const int64_t n_cols = c1 - c < kFlipCols ? c1 - c : kFlipCols;
    for (int64_t r = 0; r < rows; r += kFlipRows) {
      const int64_t n_rows = rows - r < kFlipRows ? rows - r : kFlipRows;
      flip(dist, cols, r, n_rows, c, n_cols, flipped);
      for (int64_t k = 0; k < n_cols; ++k) fold_row(flipped[k], n_rows, col_labels[c + k], row_labels + r, factor, state, c + k);
    }
  }
}

void neighbor_backward_rows(float* dist, int64_t cols, int64_t r0, int64_t r1, const int32_t* row_labels, const int32_t* col_labels,
                            NeighborKind kind, bool both, NeighborSaved a, NeighborSaved b, double* row_sum) {
  const auto weigh = kind.root ? (both ? weigh_row<true, true> : weigh_row<true, false>)
                               : (both ? weigh_row<false, true> : weigh_row<false, false>);
  for (int64_t r = r0; r < r1; ++r) weigh(dist + r * cols, cols, row_labels[r], col_labels, kind, a, r, b, row_sum);
}

}  // namespace vifast::VIFAST_ISA
