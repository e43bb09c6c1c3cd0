#include "../batch_hard.h"

#include <cmath>

#include "distance-inl.h"

namespace vifast::VIFAST_ISA {

namespace {

constexpr int64_t kStep = 32;  // columns tested at once before any of them is looked at

// The key is minimised: the squared distance less the anchor's own norm for negatives, its negative for positives.
template <bool Positive>
struct Bounds {
  float grow, shrink;
  explicit Bounds(float slack) : grow(1 + slack), shrink(1 - slack) {}
  float lower(float product, float sq) const { return Positive ? 2 * product - sq * grow : sq * shrink - 2 * product; }
  float upper(float product, float sq) const { return Positive ? 2 * product - sq * shrink : sq * grow - 2 * product; }
  static bool eligible(int32_t a, int32_t b) { return Positive ? a == b : a != b; }
};

void push(HardSide s, int64_t anchor, float width, float lower, float upper, int32_t index) {
  float* low = s.lower + anchor * kHardSlots;
  int32_t* idx = s.index + anchor * kHardSlots;
  int32_t n = s.count[anchor];
  if (n > kHardSlots) {
    if (upper < s.best[anchor]) s.best[anchor] = upper;
    return;
  }
  if (upper < s.best[anchor]) {
    s.best[anchor] = upper;
    int32_t kept = 0;
    for (int32_t k = 0; k < n; ++k) {
      if (low[k] <= upper + width) {
        low[kept] = low[k];
        idx[kept++] = idx[k];
      }
    }
    n = kept;
  }
  if (n < kHardSlots) {
    low[n] = lower;
    idx[n] = index;
  }
  s.count[anchor] = n + 1;
}

template <bool Positive>
void fold_row(const float* row, int64_t cols, int64_t anchor, int64_t col0, int32_t label, const int32_t* labels, float own_sq,
              const float* sq, float slack, HardSide s) {
  const Bounds<Positive> b(slack);
  const float width = 2 * slack * own_sq;
  for (int64_t start = 0; start < cols; start += kStep) {
    const int64_t stop = start + kStep < cols ? start + kStep : cols;
    const float limit = s.best[anchor] + width;
    int any = 0;
#pragma omp simd reduction(| : any)
    for (int64_t c = start; c < stop; ++c) {
      any |= static_cast<int>(b.lower(row[c], sq[c]) <= limit) & static_cast<int>(b.eligible(label, labels[c]));
    }
    if (!any) continue;
    for (int64_t c = start; c < stop; ++c) {
      const float lower = b.lower(row[c], sq[c]);
      if (b.eligible(label, labels[c]) && lower <= s.best[anchor] + width) {
        push(s, anchor, width, lower, b.upper(row[c], sq[c]), static_cast<int32_t>(col0 + c));
      }
    }
  }
}

}  // namespace

void hard_begin(HardSide s, int64_t r0, int64_t r1) {
  for (int64_t r = r0; r < r1; ++r) {
    s.best[r] = INFINITY;
    s.count[r] = 0;
  }
}

void hard_fold_rows(const float* tile, int64_t cols, int64_t r0, int64_t r1, int64_t col0, const int32_t* row_labels,
                    const int32_t* col_labels, const float* row_sq, const float* col_sq, float slack, HardSide pos, HardSide neg) {
  for (int64_t r = r0; r < r1; ++r) {
    const float* row = tile + r * cols;
    fold_row<true>(row, cols, r, col0, row_labels[r], col_labels, row_sq[r], col_sq, slack, pos);
    fold_row<false>(row, cols, r, col0, row_labels[r], col_labels, row_sq[r], col_sq, slack, neg);
  }
}

void hard_fold_cols(const float* tile, int64_t rows, int64_t cols, int64_t c0, int64_t c1, int64_t row0, const int32_t* row_labels,
                    const int32_t* col_labels, const float* row_sq, const float* col_sq, float slack, HardSide pos, HardSide neg) {
  float flipped[kFlipCols][kFlipRows];
  for (int64_t c = c0; c < c1; c += kFlipCols) {
    const int64_t n_cols = c1 - c < kFlipCols ? c1 - c : kFlipCols;
    for (int64_t r = 0; r < rows; r += kFlipRows) {
      const int64_t n_rows = rows - r < kFlipRows ? rows - r : kFlipRows;
      flip(tile, cols, r, n_rows, c, n_cols, flipped);
      for (int64_t k = 0; k < n_cols; ++k) {
        const int32_t label = col_labels[c + k];
        const float own = col_sq[c + k];
        fold_row<true>(flipped[k], n_rows, c + k, row0 + r, label, row_labels + r, own, row_sq + r, slack, pos);
        fold_row<false>(flipped[k], n_rows, c + k, row0 + r, label, row_labels + r, own, row_sq + r, slack, neg);
      }
    }
  }
}

void hard_finish(const float* feat, const float* reference, int64_t m, int64_t d, int64_t r0, int64_t r1, const int32_t* labels,
                 const int32_t* ref_labels, const float* sq, const float* ref_sq, const int64_t* bad, int64_t n_bad, bool positive,
                 HardMetric metric, HardSide s, float* dist, int64_t* index) {
  for (int64_t r = r0; r < r1; ++r) {
    double best = INFINITY;  // of the squared distance, negated for positives
    int64_t best_index = -1;
    auto consider = [&](int64_t j) {
      const double sqdist = direct_sqdist(feat + r * d, reference + j * d, d);
      const double key = positive ? -sqdist : sqdist;
      if (key < best || (key == best && j < best_index)) {
        best = key;
        best_index = j;
      }
    };
    if (s.count[r] <= kHardSlots) {
      for (int32_t k = 0; k < s.count[r]; ++k) consider(s.index[r * kHardSlots + k]);
    } else {
      for (int64_t j = 0; j < m; ++j) {
        if ((labels[r] == ref_labels[j]) == positive && ref_sq[j] - ref_sq[j] == 0) consider(j);
      }
    }
    double value = positive ? -best : best;
    if (best_index >= 0) value = metric.root ? std::sqrt(value < kHardFloor ? kHardFloor : value) : metric.scale * value;
    for (int64_t k = 0; k < n_bad; ++k) {
      if ((labels[r] == ref_labels[bad[k]]) == positive) {
        best_index = bad[k];
        value = NAN;
        break;
      }
    }
    if (!(sq[r] - sq[r] == 0)) value = NAN;
    dist[r] = static_cast<float>(value);
    index[r] = best_index;
  }
}

void weighted_differences(const float* self, const float* other, int64_t d, int64_t r0, int64_t r1, const int64_t* begin,
                          const int64_t* partner, const float* weight, float* out) {
  for (int64_t r = r0; r < r1; ++r) {
    const float* own = self + r * d;
    float* row = out + r * d;
    std::memset(row, 0, static_cast<size_t>(d) * sizeof(float));
    // Whole rows at a time: short runs over many partners jump from page to page and were measured 2.5 times slower.
    for (int64_t e = begin[r]; e < begin[r + 1]; ++e) {
      const float* theirs = other + partner[e] * d;
      const float w = weight[e];
#pragma omp simd
      for (int64_t k = 0; k < d; ++k) row[k] += w * (own[k] - theirs[k]);
    }
  }
}

}  // namespace vifast::VIFAST_ISA
