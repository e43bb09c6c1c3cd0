#include "../entropy_hinge.h"

#include "softmax-inl.h"

namespace vifast::VIFAST_ISA {

namespace {

// out = scale * p * (log p + h) of one row.
void entropy_gradient(const float* x, int64_t cols, double lse, float h, float scale, float* out) {
#pragma omp simd
  for (int64_t j = 0; j < cols; ++j) {
    const float log_p = static_cast<float>(x[j] - lse);
    out[j] = scale * exp_below(log_p) * (log_p + h);
  }
}

}  // namespace

void entropy_hinge_rows(const float* raw, const float* purified, int64_t cols, double margin, int64_t r0, int64_t r1, float* loss,
                        HingeSaved saved) {
  for (int64_t r = r0; r < r1; ++r) {
    const float *a = raw + r * cols, *b = purified + r * cols;
    const float top_a = row_max(a, cols, -INFINITY), top_b = row_max(b, cols, -INFINITY);
    PairSums s;
    add_pair<false>(a, b, cols, top_a, top_b, s);
    const double h_p = std::log(s.z_a) - s.a_a / s.z_a, h_q = std::log(s.z_b) - s.b_b / s.z_b;
    // H(q) - H(p) = sum (p - q) log p + sum q (log p - log q), both of first order in the difference of the rows.
    const double first = (s.w_a - s.b_a * s.w / s.z_b) / (s.z_b + s.w), second = s.b_d / s.z_b - log_ratio(s);
    const double gap = (close_pair(s) && first < 1 && first > -1 ? first + second : h_q - h_p) + margin;
    // An infinite entropy comes from an infinite logit and must not close the hinge.
    const double open = gap - gap != 0 ? NAN : gap < 0 ? 0 : gap;
    loss[r] = static_cast<float>(std::expm1(open));
    saved.lse_p[r] = top_a + std::log(s.z_a);
    saved.lse_q[r] = top_b + std::log(s.z_b);
    saved.h_p[r] = h_p;
    saved.h_q[r] = h_q;
    saved.slope[r] = open == 0 ? 0 : std::exp(open);
  }
}

void entropy_hinge_backward_rows(const float* raw, const float* purified, int64_t cols, const float* grad, HingeSaved saved, int64_t r0,
                                 int64_t r1, float* grad_raw, float* grad_purified) {
  for (int64_t r = r0; r < r1; ++r) {
    const float slope = static_cast<float>(grad[r] * saved.slope[r]);
    entropy_gradient(raw + r * cols, cols, saved.lse_p[r], static_cast<float>(saved.h_p[r]), slope, grad_raw + r * cols);
    entropy_gradient(purified + r * cols, cols, saved.lse_q[r], static_cast<float>(saved.h_q[r]), -slope, grad_purified + r * cols);
  }
}

}  // namespace vifast::VIFAST_ISA
