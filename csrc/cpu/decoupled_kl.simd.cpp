#include "../decoupled_kl.h"

#include "softmax-inl.h"

namespace vifast::VIFAST_ISA {

namespace {

struct Scale {
  float top_s, top_t, inverse;  // largest logits of the other classes, 1 / temperature
};

// Adds n columns; e becomes p, the teacher's, and f becomes q - p, both before they are normalised.
void add_others(const float* student, const float* teacher, int64_t n, const Scale& at, TiltSums& s, float* e, float* f) {
  const double shift = static_cast<double>(at.top_s) - at.top_t;
  for (int64_t j0 = 0; j0 < n; j0 += kRun) {
    const int64_t j1 = n - j0 < kRun ? n : j0 + kRun;
    float sum_p = 0, sum_q = 0, sum_y = 0, sum_rest = 0;
#pragma omp simd reduction(+ : sum_p, sum_q, sum_y, sum_rest)
    for (int64_t j = j0; j < j1; ++j) {
      const float p = exp_below((teacher[j] - at.top_t) * at.inverse), q = exp_below((student[j] - at.top_s) * at.inverse);
      const float y = static_cast<float>(static_cast<double>(student[j]) - teacher[j] - shift) * at.inverse;
      const Tilt step = tilt(p, q, y);
      sum_p += p;
      sum_q += q;
      sum_y += p * y;
      sum_rest += step.rest;
      e[j] = p;
      f[j] = step.change;
    }
    s.p += sum_p;
    s.q += sum_q;
    s.y += sum_y;
    s.rest += sum_rest;
  }
}

double softplus(double x) { return (x < 0 ? 0 : x) + std::log1p(std::exp(x < 0 ? x : -x)); }

}  // namespace

void decoupled_kl_rows(DecoupledRows x, int64_t r0, int64_t r1, float* work, float* loss, float* slope) {
  const int64_t n = x.cols;
  float *e = work, *f = work + n;
  for (int64_t r = r0; r < r1; ++r) {
    const float *student = x.student + r * n, *teacher = x.teacher + r * n;
    float* out = slope == nullptr ? nullptr : slope + r * n;
    const int64_t own = x.labels[r], next = own + 1;
    if (own < 0 || own >= n) {
      loss[r] = 0;
      for (int64_t j = 0; out != nullptr && j < n; ++j) out[j] = 0;
      continue;
    }
    const Scale at{row_max(student + next, n - next, row_max(student, own, -INFINITY)),
                   row_max(teacher + next, n - next, row_max(teacher, own, -INFINITY)), static_cast<float>(1 / x.temperature)};
    TiltSums s;
    add_others(student, teacher, own, at, s, e, f);
    add_others(student + next, teacher + next, n - next, at, s, e + next, f + next);
    const Divergence others = divergence(s);
    // Log-odds of the own class against all others, the teacher's and the student's.
    const double apart = (static_cast<double>(student[own]) - teacher[own]) - (static_cast<double>(at.top_s) - at.top_t);
    const double step = apart / x.temperature - others.log_ratio;
    const double odds_t = (static_cast<double>(teacher[own]) - at.top_t) / x.temperature - std::log(s.p), odds_s = odds_t + step;
    const double p_own = 1 / (1 + std::exp(-odds_t)), moved = 1 / (1 + std::exp(-odds_s)) - p_own;
    const double pair = softplus(odds_s) - softplus(odds_t) - p_own * step;
    const double scale = x.temperature * x.temperature;
    loss[r] = static_cast<float>(scale * (x.alpha * (pair < 0 ? 0 : pair) + x.beta * others.kl));
    if (out == nullptr) continue;
    const double pull = x.alpha * moved, all = x.share * x.temperature, each = all / (others.ratio * s.p);
    const float by_f = static_cast<float>(each * (x.beta - pull)), by_e = static_cast<float>(each * (x.beta * others.excess + pull));
    e[own] = f[own] = 0;
#pragma omp simd
    for (int64_t j = 0; j < n; ++j) out[j] = by_f * f[j] - by_e * e[j];
    out[own] = static_cast<float>(all * pull);
  }
}

}  // namespace vifast::VIFAST_ISA
