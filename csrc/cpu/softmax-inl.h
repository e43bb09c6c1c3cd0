// Included by *.simd.cpp only: softmaxes of two rows of logits a and b, and their difference to full relative accuracy.
#pragma once
#include <cmath>
#include <cstdint>

#include "distance-inl.h"

namespace vifast::VIFAST_ISA {

constexpr int64_t kRun = 256;  // columns summed in float32 lanes before the sum goes to float64

// e^x for x <= 0, at least e^-87.
static inline float exp_below(float x) { return exp_within(x < -87.0f ? -87.0f : x); }

// e^x - 1 - x for |x| < 1, without cancellation.
static inline float expm1_rest(float x) {
  float p = 2.7557319e-6f;
  p = p * x + 2.4801587e-5f;
  p = p * x + 1.9841270e-4f;
  p = p * x + 1.3888889e-3f;
  p = p * x + 8.3333333e-3f;
  p = p * x + 4.1666667e-2f;
  p = p * x + 1.6666667e-1f;
  p = p * x + 0.5f;
  return p * x * x;
}

static inline float row_max(const float* x, int64_t n, float top) {
#pragma omp simd reduction(max : top)
  for (int64_t j = 0; j < n; ++j) top = x[j] > top ? x[j] : top;
  return top;
}

// Sums over a row with d = (a - top_a) - (b - top_b) and w = e^(a - top_a) - e^(b - top_b) = e^(b - top_b) expm1(d).
struct PairSums {
  double z_a = 0, z_b = 0, w = 0;       // of the exponentials and of w
  double a_d = 0, b_d = 0, w_d = 0;     // weighted by d: of either exponential and of w
  double a_a = 0, b_a = 0, b_b = 0, w_a = 0;  // weighted by the logit of the second letter less its top
};

// Adds n columns. Pairs: the sums weighted by d; otherwise those weighted by logits, and b_d.
template <bool Pairs>
void add_pair(const float* a, const float* b, int64_t n, float top_a, float top_b, PairSums& s) {
  const double shift = static_cast<double>(top_a) - top_b;
  for (int64_t j0 = 0; j0 < n; j0 += kRun) {
    const int64_t j1 = n - j0 < kRun ? n : j0 + kRun;
    float z_a = 0, z_b = 0, w = 0, a_d = 0, b_d = 0, w_d = 0, a_a = 0, b_a = 0, b_b = 0, w_a = 0;
#pragma omp simd reduction(+ : z_a, z_b, w, a_d, b_d, w_d, a_a, b_a, b_b, w_a)
    for (int64_t j = j0; j < j1; ++j) {
      const float x = a[j] - top_a, y = b[j] - top_b;
      const float d = static_cast<float>(static_cast<double>(a[j]) - b[j] - shift);
      const float e_a = exp_below(x), e_b = exp_below(y);
      const float e_w = d < 1.0f && d > -1.0f ? e_b * (d + expm1_rest(d)) : e_a - e_b;
      z_a += e_a;
      z_b += e_b;
      w += e_w;
      b_d += e_b * d;
      if (Pairs) {
        a_d += e_a * d;
        w_d += e_w * d;
      } else {
        a_a += e_a * x;
        b_a += e_b * x;
        b_b += e_b * y;
        w_a += e_w * x;
      }
    }
    s.z_a += z_a;
    s.z_b += z_b;
    s.w += w;
    s.a_d += a_d;
    s.b_d += b_d;
    s.w_d += w_d;
    s.a_a += a_a;
    s.b_a += b_a;
    s.b_b += b_b;
    s.w_a += w_a;
  }
}

// Close rows: sums of w carry the digits. Where a's normaliser is less than half of b's they cancel instead.
static inline bool close_pair(const PairSums& s) { return s.w > -0.5 * s.z_b; }

// log z_a - log z_b
static inline double log_ratio(const PairSums& s) { return close_pair(s) ? std::log1p(s.w / s.z_b) : std::log(s.z_a / s.z_b); }

// Sums over a row for KL(p || q) of q = p e^y, both before they are normalised.
struct TiltSums {
  double p = 0, q = 0, y = 0, rest = 0;  // of p, of q, of p y, of p (e^y - 1 - y)
};

struct Tilt {
  float change, rest;  // q - p and q - p - p y
};

static inline Tilt tilt(float p, float q, float y) {
  const bool close = y < 1.0f && y > -1.0f;
  const float near_rest = p * expm1_rest(y);
  return {close ? p * y + near_rest : q - p, close ? near_rest : q - p - p * y};
}

struct Divergence {
  double kl, ratio, excess, log_ratio;  // of the ratio of the sums, q over p: less 1, and its logarithm
};

static inline Divergence divergence(const TiltSums& s) {
  const double mean = s.y / s.p, change = (s.y + s.rest) / s.p;
  const bool close = change > -0.5;  // otherwise the sums that carry close rows cancel
  const double ratio = close ? 1 + change : s.q / s.p;
  // Rounding makes a divergence of 0 negative; an infinite logit may as well, and must not pass for agreement.
  const double log_ratio = close ? std::log1p(change) : std::log(ratio), kl = log_ratio - mean;
  return {kl < 0 && mean < INFINITY ? 0 : kl, ratio, close ? change : ratio - 1, log_ratio};
}

}  // namespace vifast::VIFAST_ISA
