#include "../weighted_triplet.h"

#include <cmath>

#include "distance-inl.h"

namespace vifast::VIFAST_ISA {

namespace {

// sign * d is the logit: +d for positives, -d for negatives.
template <bool Positive>
float logit(float d) {
  return Positive ? d : -d;
}

// A side whose maximum is not fixed at 0: published negatives are, see idkl 13.
template <bool Positive>
constexpr bool shifts(bool stable) {
  return Positive || stable;
}

void raise_max(WrtSide s, int64_t i, double candidate) {
  if (!(candidate > s.m[i])) return;
  const double shrink = std::exp(s.m[i] - candidate);
  s.z[i] *= shrink;
  s.t[i] *= shrink;
  s.m[i] = candidate;
}

template <bool Positive>
void fold_row(const float* row, int64_t cols, int32_t label, const int32_t* labels, bool stable, WrtSide s, int64_t i) {
  if (shifts<Positive>(stable)) {
    float top = -INFINITY;
#pragma omp simd reduction(max : top)
    for (int64_t c = 0; c < cols; ++c) {
      const float v = (label == labels[c]) == Positive ? logit<Positive>(row[c]) : -INFINITY;
      top = v > top ? v : top;
    }
    raise_max(s, i, top);
  }
  const float m = static_cast<float>(s.m[i]);
  float z = 0, t = 0;
#pragma omp simd reduction(+ : z, t)
  for (int64_t c = 0; c < cols; ++c) {
    const float e = exp_inline(logit<Positive>(row[c]) - m);
    const float w = (label == labels[c]) == Positive ? e : 0.0f;
    z += w;
    t += (label == labels[c]) == Positive ? e * row[c] : 0.0f;
  }
  s.z[i] += z;
  s.t[i] += t;
}

}  // namespace

void wrt_fold_rows(const float* dist, int64_t cols, int64_t r0, int64_t r1, const int32_t* row_labels, const int32_t* col_labels,
                   bool stable, WrtSide pos, WrtSide neg) {
  for (int64_t r = r0; r < r1; ++r) {
    fold_row<true>(dist + r * cols, cols, row_labels[r], col_labels, stable, pos, r);
    fold_row<false>(dist + r * cols, cols, row_labels[r], col_labels, stable, neg, r);
  }
}

void wrt_fold_cols(const float* dist, int64_t rows, int64_t cols, int64_t c0, int64_t c1, const int32_t* row_labels,
                   const int32_t* col_labels, bool stable, WrtSide pos, WrtSide neg) {
  float flipped[kFlipCols][kFlipRows];
  for (int64_t c = c0; c < c1; c += kFlipCols) {
    const int64_t n_cols = c1 - c < kFlipCols ? c1 - c : kFlipCols;
    for (int64_t r = 0; r < rows; r += kFlipRows) {
      const int64_t n_rows = rows - r < kFlipRows ? rows - r : kFlipRows;
      flip(dist, cols, r, n_rows, c, n_cols, flipped);
      for (int64_t k = 0; k < n_cols; ++k) {
        fold_row<true>(flipped[k], n_rows, col_labels[c + k], row_labels + r, stable, pos, c + k);
        fold_row<false>(flipped[k], n_rows, col_labels[c + k], row_labels + r, stable, neg, c + k);
      }
    }
  }
}

void wrt_backward_rows(float* dist, int64_t cols, int64_t r0, int64_t r1, const int32_t* row_labels, const int32_t* col_labels,
                       bool stable, WrtSaved a, WrtSaved b, double* row_sum) {
  const float at_max = stable ? 0.0f : static_cast<float>(kWrtEps);
  for (int64_t r = r0; r < r1; ++r) {
    float* row = dist + r * cols;
    const int32_t label = row_labels[r];
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t c = 0; c < cols; ++c) {
      const float d = row[c];
      // The published normaliser keeps its addend while the maximum moves: d(max) adds -mean * eps / z at the maximum.
      const float pos_a = a.slope[r] * a.pos_inv_z[r] *
                          (exp_inline(d - a.pos_max[r]) * (1 + d - a.pos_mean[r]) - (d == a.pos_max[r] ? at_max * a.pos_mean[r] : 0.0f));
      const float pos_b = b.slope[c] * b.pos_inv_z[c] *
                          (exp_inline(d - b.pos_max[c]) * (1 + d - b.pos_mean[c]) - (d == b.pos_max[c] ? at_max * b.pos_mean[c] : 0.0f));
      const float neg_a = a.slope[r] * a.neg_inv_z[r] * exp_inline(a.neg_min[r] - d) * (1 - d + a.neg_mean[r]);
      const float neg_b = b.slope[c] * b.neg_inv_z[c] * exp_inline(b.neg_min[c] - d) * (1 - d + b.neg_mean[c]);
      const float both = label == col_labels[c] ? pos_a + pos_b : -(neg_a + neg_b);
      const float s = d * d <= kWrtFloor * 1.0001f ? 0.0f : -both / d;  // no gradient through a clamped entry
      row[c] = s;
      sum += s;
    }
    row_sum[r] += sum;
  }
}

}  // namespace vifast::VIFAST_ISA
