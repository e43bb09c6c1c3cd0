#include <algorithm>

#include "check.h"
#include "confidence_weights.h"
#include "decoupled_kl.h"
#include "entropy_hinge.h"
#include "parallel.h"
#include "percentile_mask.h"
#include "standardized_kl.h"
#include "symmetric_kl.h"

namespace vifast {
namespace {

std::vector<float> normal(int64_t n, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> draw;
  std::vector<float> x(n);
  for (float& v : x) v = draw(random);
  return x;
}

std::vector<double> log_softmax(std::vector<double> x) {
  double z = 0;
  for (double v : x) z += std::exp(v);
  for (double& v : x) v -= std::log(z);
  return x;
}

double entropy(const std::vector<double>& log_p) {
  double h = 0;
  for (double v : log_p) h -= std::exp(v) * v;
  return h;
}

// Row r of the rows r, r + rows, ... laid side by side.
std::vector<double> side_by_side(const std::vector<float>& x, int64_t cols, int64_t rows, int64_t r) {
  std::vector<double> out;
  for (int64_t at = r * cols; at < static_cast<int64_t>(x.size()); at += rows * cols) out.insert(out.end(), x.begin() + at, x.begin() + at + cols);
  return out;
}

TEST(symmetric_kl_is_its_formula) {
  each_isa([] {
    const int64_t cols = 37, n = 12;
    const std::vector<float> a = normal(n * cols, 1), b = normal(n * cols, 2);
    for (int64_t rows : {int64_t{1}, int64_t{3}, n}) {
      std::vector<float> loss(rows), grad(rows, 2.0f), grad_a(n * cols), grad_b(n * cols);
      std::vector<double> s(4 * rows);
      const KlSaved saved{s.data(), s.data() + rows, s.data() + 2 * rows, s.data() + 3 * rows};
      const LogitPairs x{a.data(), b.data(), rows, n / rows, cols};
      parallel_for(rows, 1, 3, [&](int64_t r0, int64_t r1) { VIFAST_DISPATCH(symmetric_kl_rows, x, r0, r1, loss.data(), saved); });
      parallel_for(rows, 1, 3, [&](int64_t r0, int64_t r1) {
        VIFAST_DISPATCH(symmetric_kl_backward_rows, x, grad.data(), saved, r0, r1, grad_a.data(), grad_b.data());
      });
      for (int64_t r = 0; r < rows; ++r) {
        const std::vector<double> p = log_softmax(side_by_side(a, cols, rows, r)), q = log_softmax(side_by_side(b, cols, rows, r));
        double pq = 0, qp = 0;
        for (size_t j = 0; j < p.size(); ++j) {
          pq += std::exp(p[j]) * (p[j] - q[j]);
          qp += std::exp(q[j]) * (q[j] - p[j]);
        }
        CHECK(near(loss[r], pq + qp));
        CHECK(near(grad_a[r * cols], 2 * (std::exp(p[0]) * (p[0] - q[0] - pq) + std::exp(p[0]) - std::exp(q[0]))));
        CHECK(near(grad_b[r * cols], 2 * (std::exp(q[0]) * (q[0] - p[0] - qp) + std::exp(q[0]) - std::exp(p[0]))));
      }
    }
  });
}

TEST(entropy_hinge_is_its_formula) {
  each_isa([] {
    const int64_t cols = 41, n = 9;
    const std::vector<float> a = normal(n * cols, 3), b = normal(n * cols, 4);
    std::vector<float> loss(n), grad(n, 1.0f), grad_a(n * cols), grad_b(n * cols);
    std::vector<double> s(5 * n);
    const HingeSaved saved{s.data(), s.data() + n, s.data() + 2 * n, s.data() + 3 * n, s.data() + 4 * n};
    VIFAST_DISPATCH(entropy_hinge_rows, a.data(), b.data(), cols, 0.05, 0, n, loss.data(), saved);
    VIFAST_DISPATCH(entropy_hinge_backward_rows, a.data(), b.data(), cols, grad.data(), saved, 0, n, grad_a.data(), grad_b.data());
    for (int64_t r = 0; r < n; ++r) {
      const std::vector<double> p = log_softmax(side_by_side(a, cols, n, r)), q = log_softmax(side_by_side(b, cols, n, r));
      const double gap = entropy(q) - entropy(p) + 0.05, slope = gap > 0 ? std::exp(gap) : 0;
      CHECK(near(loss[r], gap > 0 ? std::expm1(gap) : 0));
      CHECK(near(grad_a[r * cols], slope * std::exp(p[0]) * (p[0] + entropy(p))));
      CHECK(near(grad_b[r * cols], -slope * std::exp(q[0]) * (q[0] + entropy(q))));
    }
  });
}

TEST(standardized_kl_is_its_formula_whatever_shares_an_exponential) {
  each_isa([] {
    const int64_t cols = 300, n = 4;
    const std::vector<float> student = normal(n * cols, 5), teacher = normal(n * cols, 6);
    std::vector<float> work(kSklWork * cols), slope(n * cols);
    for (double t : {2.0, 3.0, 4.0, 6.0, 12.0}) {
      std::vector<float> shared(n), own(n);
      for (bool share : {true, false}) {
        const Temperature at{static_cast<float>(1 / t), share ? static_cast<int32_t>(12 / t) : 0, t};
        const SklRows x{student.data(), teacher.data(), cols, nullptr, 0, &at, 1, share, true, 1, 1e-7};
        VIFAST_DISPATCH(standardized_kl_rows, x, 0, n, work.data(), (share ? shared : own).data(), slope.data());
      }
      for (int64_t r = 0; r < n; ++r) {
        auto z = [&](const std::vector<float>& rows) {
          std::vector<double> x = side_by_side(rows, cols, n, r);
          double mean = 0, squares = 0;
          for (double v : x) mean += v / cols;
          for (double v : x) squares += (v - mean) * (v - mean);
          for (double& v : x) v = (v - mean) / (std::sqrt(squares / (cols - 1)) + 1e-7) / t;
          return log_softmax(x);
        };
        const std::vector<double> p = z(teacher), q = z(student);
        double kl = 0;
        for (int64_t j = 0; j < cols; ++j) kl += std::exp(p[j]) * (p[j] - q[j]);
        CHECK(near(shared[r], t * t * kl));
        CHECK(near(own[r], t * t * kl));
      }
    }
  });
}

TEST(decoupled_kl_is_its_formula) {
  each_isa([] {
    const int64_t cols = 300, n = 4;
    const std::vector<float> student = normal(n * cols, 8), teacher = normal(n * cols, 9);
    const std::vector<int64_t> labels = {0, 131, cols - 1, cols};
    std::vector<float> work(kDecoupledWork * cols), loss(n), slope(n * cols);
    const DecoupledRows x{student.data(), teacher.data(), labels.data(), cols, 0.5, 3, 2, 0.25};
    VIFAST_DISPATCH(decoupled_kl_rows, x, 0, n, work.data(), loss.data(), nullptr);
    VIFAST_DISPATCH(decoupled_kl_rows, x, 0, n, work.data(), loss.data(), slope.data());
    for (int64_t r = 0; r + 1 < n; ++r) {
      const int64_t own = labels[r], other = own == 0 ? 1 : 0;
      auto parts = [&](const std::vector<float>& rows) {
        std::vector<double> p = side_by_side(rows, cols, n, r);
        for (double& v : p) v /= 2;
        p = log_softmax(p);
        const double b = std::exp(p[own]);
        p.erase(p.begin() + own);
        return std::make_pair(b, log_softmax(p));
      };
      const auto [b_t, r_t] = parts(teacher);
      const auto [b_s, r_s] = parts(student);
      const double pair = b_t * std::log(b_t / b_s) + (1 - b_t) * std::log((1 - b_t) / (1 - b_s)), pull = 0.5 * (b_s - b_t);
      double kl = 0;
      for (int64_t j = 0; j + 1 < cols; ++j) kl += std::exp(r_t[j]) * (r_t[j] - r_s[j]);
      CHECK(near(loss[r], 4 * (0.5 * pair + 3 * kl)));
      CHECK(near(slope[r * cols + own], 0.25 * 2 * pull));
      CHECK(near(slope[r * cols + other], 0.25 * 2 * (3 * (std::exp(r_s[0]) - std::exp(r_t[0])) - pull * std::exp(r_s[0]))));
    }
    CHECK(loss[n - 1] == 0 && slope[(n - 1) * cols] == 0 && slope[n * cols - 1] == 0);
  });
}

TEST(percentile_masks) {
  const std::vector<float> c = {0.1f, 0.4f, NAN, 0.2f, 0.3f};
  std::vector<float> mask(5);
  percentile_mask(c.data(), 5, 50, true, mask.data());
  CHECK((mask == std::vector<float>{0, 1, 0, 0, 1}));
  percentile_mask(c.data(), 5, 50, false, mask.data());
  CHECK((mask == std::vector<float>{1, 0, 0, 1, 0}));
  percentile_mask(c.data() + 2, 1, 50, true, mask.data());
  CHECK(mask[0] == 0);
  each_isa([&] {
    const std::vector<float> logits = normal(3 * 700, 7);
    std::vector<float> out(3);
    VIFAST_DISPATCH(softmax_confidence_rows, logits.data(), 700, 0, 3, out.data());
    for (int64_t r = 0; r < 3; ++r) {
      const std::vector<double> p = log_softmax(side_by_side(logits, 700, 3, r));
      CHECK(near(out[r], std::exp(*std::max_element(p.begin(), p.end()))));
    }
  });
}

TEST(weights_of_confidence) {
  const std::vector<double> fixed = {1, 0, 0, 1}, masked = {0, 0, 1, 0};
  WeightPlan plan{MaskRule::percentile, 50, true, true, false, 2, fixed.data(), masked.data(), 0.5f};
  const std::vector<float> c = {0.9f, 0.1f, 0.4f, 0.2f, 0.3f, NAN}, allowed = {0, 1, 1, 1, 0, 1};
  std::vector<float> mask(6), weights(12);
  float kept, theta;
  confidence_weights(c.data(), nullptr, 6, 1, plan, mask.data(), weights.data(), &kept, &theta);
  CHECK((mask == std::vector<float>{1, 0, 1, 0, 1, 0}));
  CHECK(near(weights[0], 1) && near(weights[1], 0) && near(weights[4], 0.2) && near(weights[5], 0.2) && near(weights[6], 0));
  CHECK(near(kept, 0.4));
  plan.rule = MaskRule::ema;
  plan.level = 0.75;
  plan.by_kept = true;
  confidence_weights(c.data(), allowed.data(), 5, 1, plan, mask.data(), weights.data(), &kept, &theta);
  CHECK(near(theta, 0.4375) && kept == 0);
  plan.before = NAN;
  confidence_weights(c.data(), allowed.data(), 5, 1, plan, mask.data(), weights.data(), &kept, &theta);
  CHECK(near(theta, 0.25) && near(kept, 0.25) && near(weights[4], 1));
  confidence_weights(c.data(), nullptr, 0, 0, plan, nullptr, nullptr, &kept, &theta);
  CHECK(kept == 1);
}

}  // namespace
}  // namespace vifast
