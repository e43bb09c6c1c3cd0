#include "../standardized_kl.h"

#include "softmax-inl.h"

namespace vifast::VIFAST_ISA {

namespace {

struct Standard {
  double top, inverse;     // z = (x - top) * inverse + a constant of the row
  double mean, deviation;  // of x - top
};

// z less its maximum into out; softmaxes do not see the difference, and no exponential overflows.
Standard standardize(const float* x, int64_t n, const SklRows& rows, float* out) {
  Standard s{row_max(x, n, -INFINITY), 1.0, 0.0, 0.0};
  if (rows.standardize) {
    double sum = 0, squares = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < n; ++j) sum += x[j] - s.top;
    s.mean = sum / n;
#pragma omp simd reduction(+ : squares)
    for (int64_t j = 0; j < n; ++j) {
      const double t = x[j] - s.top - s.mean;
      squares += t * t;
    }
    s.deviation = std::sqrt(squares / (n > rows.ddof ? n - rows.ddof : 1));
    const double inverse = 1.0 / (s.deviation + rows.eps);
    s.inverse = inverse > 1e30 ? 1e30 : inverse;  // of a constant row: 0 times it stays 0
  }
  const float top = static_cast<float>(s.top), by = static_cast<float>(s.inverse);
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) out[j] = (x[j] - top) * by;
  return s;
}

// e^(z / T): the K-th power of u = e^(z / 12), or for K = 0 an exponential of its own.
template <int K>
float tempered(float z, float inverse, float u) {
  if constexpr (K == 0) return exp_below(z * inverse);
  if constexpr (K == 1) return u;
  if constexpr (K == 2) return u * u;
  if constexpr (K == 3) return u * u * u;
  if constexpr (K == 4) return (u * u) * (u * u);
  if constexpr (K == 6) return (u * u) * (u * u) * (u * u);
}

// What the temperatures of a row share: z less its maximum, their difference d, e^(z / 12).
struct Row {
  const float *z_s, *z_t, *d, *u_s, *u_t;
};

// y = d / T; e becomes p, f becomes q - p, both before they are normalised.
template <int K>
TiltSums temper(const Row& row, int64_t n, float inverse, float* e, float* f) {
  TiltSums s;
  for (int64_t j0 = 0; j0 < n; j0 += kRun) {
    const int64_t j1 = n - j0 < kRun ? n : j0 + kRun;
    float sum_t = 0, sum_s = 0, sum_y = 0, sum_rest = 0;
#pragma omp simd reduction(+ : sum_t, sum_s, sum_y, sum_rest)
    for (int64_t j = j0; j < j1; ++j) {
      const float p = tempered<K>(row.z_t[j], inverse, row.u_t[j]);
      const float q = tempered<K>(row.z_s[j], inverse, row.u_s[j]);
      const float y = row.d[j] * inverse;
      const Tilt step = tilt(p, q, y);
      sum_t += p;
      sum_s += q;
      sum_y += p * y;
      sum_rest += step.rest;
      e[j] = p;
      f[j] = step.change;
    }
    s.p += sum_t;
    s.q += sum_s;
    s.y += sum_y;
    s.rest += sum_rest;
  }
  return s;
}

TiltSums temper_by(int32_t power, const Row& row, int64_t n, float inverse, float* e, float* f) {
  switch (power) {
    case 1: return temper<1>(row, n, inverse, e, f);
    case 2: return temper<2>(row, n, inverse, e, f);
    case 3: return temper<3>(row, n, inverse, e, f);
    case 4: return temper<4>(row, n, inverse, e, f);
    case 6: return temper<6>(row, n, inverse, e, f);
    default: return temper<0>(row, n, inverse, e, f);
  }
}

void exponentials(const float* z, int64_t n, float inverse, float* out) {
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) out[j] = exp_below(z[j] * inverse);
}

// out = (g - z (g.z) / ((n - ddof) deviation inverse)) inverse
void through_standardization(const float* g, const float* z, int64_t n, const Standard& s, const SklRows& rows, float* out) {
  double along = 0;
#pragma omp simd reduction(+ : along)
  for (int64_t j = 0; j < n; ++j) along += static_cast<double>(g[j]) * z[j];
  const int64_t freedom = n > rows.ddof ? n - rows.ddof : 1;
  const double part = s.deviation > 0 ? along / (freedom * s.deviation * s.inverse) : along * 0;  // a NaN stays one
  const float k = static_cast<float>(part), center = static_cast<float>(s.mean * s.inverse), by = static_cast<float>(s.inverse);
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) out[j] = (g[j] - (z[j] - center) * k) * by;
}

}  // namespace

void standardized_kl_rows(SklRows x, int64_t r0, int64_t r1, float* work, float* loss, float* slope) {
  const int64_t n = x.cols;
  float *z_s = work, *z_t = work + n, *d = work + 2 * n, *u_s = work + 3 * n, *u_t = work + 4 * n;
  float *e = work + 5 * n, *f = work + 6 * n, *g = work + 7 * n;
  const Row row{z_s, z_t, d, u_s, u_t};
  for (int64_t r = r0; r < r1; ++r) {
    const float *student = x.student + r * n, *teacher = x.teacher + r * n;
    const Standard own = standardize(student, n, x, z_s), other = standardize(teacher, n, x, z_t);
#pragma omp simd
    for (int64_t j = 0; j < n; ++j) {  // in float64: z reaches 45, its rounding would drown a small difference
      d[j] = static_cast<float>((student[j] - own.top) * own.inverse - (teacher[j] - other.top) * other.inverse);
    }
    if (x.shared) {
      exponentials(z_s, n, 1.0f / 12, u_s);
      exponentials(z_t, n, 1.0f / 12, u_t);
    }
    for (int64_t j = 0; j < n; ++j) g[j] = 0;
    double total = 0;
    for (int64_t t = 0; t < x.n_temperatures; ++t) {
      const Temperature& at = x.temperatures[t];
      const TiltSums s = temper_by(at.power, row, n, at.inverse, e, f);
      const Divergence between = divergence(s);
      const double factor = x.scale == nullptr ? 1.0 : x.scale[r * x.scale_cols + (x.scale_cols > 1 ? t : 0)];
      total += factor * at.weight / at.inverse * between.kl;
      if (slope == nullptr) continue;
      const float coefficient = static_cast<float>(factor * at.weight / (between.ratio * s.p)), excess = static_cast<float>(between.excess);
#pragma omp simd
      for (int64_t j = 0; j < n; ++j) g[j] += coefficient * (f[j] - excess * e[j]);
    }
    loss[r] = static_cast<float>(total);
    if (slope == nullptr) continue;
    if (x.standardize) {
      through_standardization(g, z_s, n, own, x, slope + r * n);
    } else {
      for (int64_t j = 0; j < n; ++j) slope[r * n + j] = g[j];
    }
  }
}

}  // namespace vifast::VIFAST_ISA
