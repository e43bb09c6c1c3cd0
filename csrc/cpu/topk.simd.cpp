#include "../topk.h"

#include <cmath>
#include <cstring>

#include "half-inl.h"

namespace vifast::VIFAST_ISA {

namespace {

template <class T, class Step>
double sum_lanes(const T* a, const T* b, int64_t d, Step step) {
  double lane[kScoreLanes] = {};
  int64_t k = 0;
  for (; k + kScoreLanes <= d; k += kScoreLanes) {
#pragma omp simd
    for (int l = 0; l < kScoreLanes; ++l) lane[l] = step(a[k + l], b[k + l], lane[l]);
  }
  for (int l = 0; l < d - k; ++l) lane[l] = step(a[k + l], b[k + l], lane[l]);
  for (int half = kScoreLanes / 2; half > 0; half /= 2) {
    for (int l = 0; l < half; ++l) lane[l] += lane[l + half];
  }
  return lane[0];
}

template <class T>
double exact_dot(const T* a, const T* b, int64_t d) {
  return sum_lanes(a, b, d, [](T x, T y, double sum) { return dot_step(x, y, sum); });
}

template <class T>
double exact_key(Metric metric, const T* query, double query_sq, const T* row, int64_t d) {
  if (metric == Metric::sqeuclidean) return sum_lanes(query, row, d, [](T x, T y, double sum) { return sqdist_step(x, y, sum); });
  const double dot = exact_dot(query, row, d);
  return metric == Metric::dot ? -dot : cosine_key(dot, query_sq, exact_dot(row, row, d));
}

template <class Half>
const float* widen(const uint16_t* row, int64_t d, float* out) {
#pragma omp simd
  for (int64_t k = 0; k < d; ++k) out[k] = Half::read(row[k]);
  return out;
}

// Candidates lie anywhere in the gallery: the next row is fetched while this one is scored.
void prefetch(const void* row, int64_t bytes) {
  for (int64_t b = 0; b < bytes && b < 4096; b += 64) __builtin_prefetch(static_cast<const char*>(row) + b);
}

template <class T, class RowAt>
void score(Metric metric, const T* query, int64_t d, Candidate* candidate, int64_t n, Rows gallery, RowAt row_at) {
  const int64_t width = d * (gallery.type == RowType::float64 ? 8 : gallery.type == RowType::float32 ? 4 : 2);
  const double query_sq = metric == Metric::cosine ? exact_dot(query, query, d) : 0;
  for (int64_t i = 0; i < n; ++i) {
    if (i + 1 < n) prefetch(static_cast<const char*>(gallery.data) + candidate[i + 1].index * width, width);
    if (candidate[i].lower == candidate[i].upper) continue;
    candidate[i].lower = candidate[i].upper = exact_key(metric, query, query_sq, row_at(candidate[i].index), d);
  }
}

}  // namespace

void topk_norms(const float* rows, int64_t d, int64_t r0, int64_t r1, double* norm) {
  for (int64_t r = r0; r < r1; ++r) norm[r] = std::sqrt(exact_dot(rows + r * d, rows + r * d, d));
}

void topk_round(const float* rows, int64_t d, int64_t r0, int64_t r1, uint16_t* half, double* norm, double* lost) {
  for (int64_t r = r0; r < r1; ++r) {
    const float* row = rows + r * d;
    uint16_t* out = half + r * d;
    double sum = 0, gone = 0;
#pragma omp simd reduction(+ : sum, gone)
    for (int64_t k = 0; k < d; ++k) {
      out[k] = BFloat16::write(row[k]);
      const double x = row[k], e = x - static_cast<double>(BFloat16::read(out[k]));
      sum += x * x;
      gone += e * e;
    }
    norm[r] = std::sqrt(sum);
    lost[r] = std::sqrt(gone);
  }
}

namespace {

// Share: the part of a product that its rounding may hide.
template <class Stored>
void next_block(const typename Stored::Stored* row, const float* base, const float* scale, float share, int64_t start, int64_t cols,
                float limit, int64_t* block, uint8_t* hit) {
  for (; start < cols; start += kTopkStep) {
    const int64_t width = start + kTopkStep < cols ? kTopkStep : cols - start;
    const typename Stored::Stored* x = row + start;
    const float *b = base + start, *s = scale + start;
    auto outside = [&](int64_t c) {
      const float product = Stored::read(x[c]);
      return b[c] - s[c] * (product + share * std::fabs(product)) > limit;
    };
    int32_t any = 0;
#pragma omp simd reduction(| : any)
    for (int64_t c = 0; c < width; ++c) any |= !outside(c);
    if (!any) continue;
    std::memset(hit, 0, kTopkStep);
#pragma omp simd
    for (int64_t c = 0; c < width; ++c) hit[c] = !outside(c);
    break;
  }
  *block = start;
}

}  // namespace

void topk_next(TopkTile tile, int64_t offset, const float* base, const float* scale, int64_t start, int64_t cols, float limit,
               int64_t* block, uint8_t* hit) {
  if (tile.half) {
    next_block<BFloat16>(static_cast<const uint16_t*>(tile.data) + offset, base, scale, kHalfShare, start, cols, limit, block, hit);
  } else {
    next_block<Single>(static_cast<const float*>(tile.data) + offset, base, scale, 0.0f, start, cols, limit, block, hit);
  }
}

void topk_score(Metric metric, const void* query, Rows gallery, Candidate* candidate, int64_t n, float* scratch) {
  const int64_t d = gallery.d;
  if (gallery.type == RowType::float64) {
    const double* rows = static_cast<const double*>(gallery.data);
    score(metric, static_cast<const double*>(query), d, candidate, n, gallery, [=](int64_t j) { return rows + j * d; });
  } else if (gallery.type == RowType::float32) {
    const float* rows = static_cast<const float*>(gallery.data);
    score(metric, static_cast<const float*>(query), d, candidate, n, gallery, [=](int64_t j) { return rows + j * d; });
  } else {
    const uint16_t* rows = static_cast<const uint16_t*>(gallery.data);
    auto* widened = gallery.type == RowType::bfloat16 ? &widen<BFloat16> : &widen<Float16>;
    score(metric, static_cast<const float*>(query), d, candidate, n, gallery, [=](int64_t j) { return widened(rows + j * d, d, scratch); });
  }
}

}  // namespace vifast::VIFAST_ISA
