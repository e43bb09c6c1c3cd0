// The float64 scores that decide a search, one copy for host and device. A sum is 32 partial sums, one for the columns that
// leave each remainder by 32, added in halves; nothing but these steps rounds. So the scores have the same bits on every
// instruction set, and on a GPU, where the partial sums are the lanes of a warp.
#pragma once
#include <cmath>
#include <cstdint>

#include "ranking_inl.h"

namespace vifast {

enum class Metric : int { cosine, dot, sqeuclidean };  // the key is 1 - cos, -a.b or ||a - b||^2: smaller is nearer

enum class RowType : int { float32, float64, float16, bfloat16 };

// Norms between which products and their sums stay normal float32 numbers.
constexpr double kLeastNorm = 1e-30, kMostNorm = 1e18;

constexpr int kScoreLanes = 32;

VIFAST_HD double fused(double a, double b, double sum) {
#ifdef __CUDA_ARCH__
  return fma(a, b, sum);
#else
  return __builtin_fma(a, b, sum);
#endif
}

// The product of two float32 numbers is exact, fused or not.
VIFAST_HD double dot_step(float a, float b, double sum) { return static_cast<double>(a) * static_cast<double>(b) + sum; }
VIFAST_HD double dot_step(double a, double b, double sum) { return fused(a, b, sum); }

// Differences in float64 too: they decide the order of rows that a float32 difference would make equal.
template <class T>
VIFAST_HD double sqdist_step(T a, T b, double sum) {
  const double t = static_cast<double>(a) - static_cast<double>(b);
  return fused(t, t, sum);
}

// 1 - cosine. One root of the product, so that a row's cosine with its own copy is exactly 1.
VIFAST_HD double cosine_key(double dot, double sq_a, double sq_b) {
  const double norms = sqrt(sq_a * sq_b);
  const double cosine = norms > 0 ? dot / norms : 0.0;
  return 1 - (cosine > 1 ? 1.0 : cosine < -1 ? -1.0 : cosine);
}

// Bound of |computed - true| for the key of a product, of float32 rows or (half) of their bfloat16 roundings. `slack`: the
// product's gamma_d with the rounding of norms, centring and conversion to float32. `tiny`: what subnormal products lose,
// flushed to zero or not.
struct KeyError {
  double slack, tiny;
  Metric metric;

  // Rises with either norm, except that a small gallery row is the worse one for the cosine.
  VIFAST_HD double operator()(double query_norm, double norm) const {
    if (metric == Metric::cosine) return slack + tiny * (1 + 1 / norm);
    const double scale = metric == Metric::dot ? query_norm * norm : query_norm * query_norm + norm * norm;
    return slack * scale + tiny * (1 + query_norm + norm);
  }

  // What rounding the rows adds; `lost` of the gallery row is a share of its norm for the cosine.
  VIFAST_HD double rounding(double query_norm, double query_lost, double norm, double lost) const {
    if (metric == Metric::cosine) return query_lost + (query_norm + query_lost) * lost;
    return (metric == Metric::dot ? 1 : 2) * (query_lost * norm + (query_norm + query_lost) * lost);
  }
};

}  // namespace vifast
