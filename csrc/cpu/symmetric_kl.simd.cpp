#include "../symmetric_kl.h"

#include "softmax-inl.h"

namespace vifast::VIFAST_ISA {

void symmetric_kl_rows(LogitPairs x, int64_t r0, int64_t r1, float* loss, KlSaved saved) {
  const int64_t step = x.rows * x.cols;
  for (int64_t r = r0; r < r1; ++r) {
    const float *a = x.a + r * x.cols, *b = x.b + r * x.cols;
    float top_a = -INFINITY, top_b = -INFINITY;
    for (int64_t g = 0; g < x.groups; ++g) {
      top_a = row_max(a + g * step, x.cols, top_a);
      top_b = row_max(b + g * step, x.cols, top_b);
    }
    PairSums s;
    for (int64_t g = 0; g < x.groups; ++g) add_pair<true>(a + g * step, b + g * step, x.cols, top_a, top_b, s);
    const double ratio = log_ratio(s);
    double sum = close_pair(s) ? (s.w_d - s.b_d * s.w / s.z_b) / (s.z_b + s.w) : s.a_d / s.z_a - s.b_d / s.z_b;
    if (sum < 0) sum = 0;
    const double kl_qp = ratio - s.b_d / s.z_b;
    loss[r] = static_cast<float>(sum);
    saved.lse_b[r] = top_b + std::log(s.z_b);
    saved.lse_a[r] = saved.lse_b[r] + ((static_cast<double>(top_a) - top_b) + ratio);
    saved.kl_qp[r] = kl_qp;
    saved.kl_pq[r] = sum - kl_qp;
  }
}

void symmetric_kl_backward_rows(LogitPairs x, const float* grad, KlSaved saved, int64_t r0, int64_t r1, float* grad_a, float* grad_b) {
  for (int64_t g = 0; g < x.groups; ++g) {
    for (int64_t r = r0; r < r1; ++r) {
      const int64_t at = (g * x.rows + r) * x.cols;
      const float *a = x.a + at, *b = x.b + at;
      float *out_a = grad_a + at, *out_b = grad_b + at;
      const double lse_a = saved.lse_a[r], lse_b = saved.lse_b[r], shift = lse_a - lse_b;
      const float kl_pq = static_cast<float>(saved.kl_pq[r]), kl_qp = static_cast<float>(saved.kl_qp[r]), up = grad[r];
#pragma omp simd
      for (int64_t j = 0; j < x.cols; ++j) {
        const float p = exp_below(static_cast<float>(a[j] - lse_a)), q = exp_below(static_cast<float>(b[j] - lse_b));
        const float d = static_cast<float>(static_cast<double>(a[j]) - b[j] - shift);
        const float change = d < 1.0f && d > -1.0f ? q * (d + expm1_rest(d)) : p - q;
        out_a[j] = up * (p * (d - kl_pq) + change);
        out_b[j] = up * (q * (-d - kl_qp) - change);
      }
    }
  }
}

}  // namespace vifast::VIFAST_ISA
