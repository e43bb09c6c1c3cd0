// Unit rows, relations to prototypes, and the gradients through both, against double and differences.
#include "check.h"
#include "prototype_alignment.h"
#include "unit_rows.h"

namespace vifast {
namespace {

TEST(unit_rows_and_their_gradient) {
  each_isa([] {
    for (int64_t d : {1, 7, 16, 33}) {
      const int64_t n = 5;
      Set s(n, d, 2, 1), g(n, d, 2, 2);
      for (int64_t k = 0; k < d; ++k) s.x[2 * d + k] = 0;
      std::vector<float> unit(n * d, NAN), out(n * d, NAN);
      std::vector<double> inv(n);
      VIFAST_DISPATCH(inverse_norms, s.x.data(), d, 1, n, inv.data());
      VIFAST_DISPATCH(unit_rows, s.x.data(), d, 1, n, unit.data());
      VIFAST_DISPATCH(unit_backward_rows, g.x.data(), s.x.data(), d, 1, n, out.data());
      CHECK(std::isnan(unit[0]) && std::isnan(out[d - 1]));
      for (int64_t r = 1; r < n; ++r) {
        if (r == 2) {
          CHECK(unit[r * d] == 0);
          continue;
        }
        const double norm = std::sqrt(s.dot(r, s, r)), along = g.dot(r, s, r) / norm;
        CHECK(near(inv[r], 1 / norm));
        for (int64_t k = 0; k < d; ++k) {
          CHECK(near(unit[r * d + k], s.row(r)[k] / norm));
          CHECK(near(out[r * d + k], (g.row(r)[k] - along * s.row(r)[k] / norm) / norm));
        }
      }
      VIFAST_DISPATCH(unit_backward_rows, g.x.data(), s.x.data(), d, 1, n, g.x.data());
      for (int64_t k = d; k < n * d; ++k) CHECK(g.x[k] == out[k]);
    }
  });
}

// W of one row of products, in double.
std::vector<double> relation(const std::vector<double>& dots, double inv_f, const std::vector<double>& inv_p, double tau) {
  double top = -INFINITY, squares = 0;
  std::vector<double> w(dots.size());
  for (size_t c = 0; c < w.size(); ++c) top = std::max(top, w[c] = dots[c] * inv_f * inv_p[c] / tau);
  for (double& v : w) {
    v = std::exp(v - top);
    squares += v * v;
  }
  for (double& v : w) v /= std::sqrt(squares);
  return w;
}

TEST(relations_to_prototypes) {
  each_isa([] {
    for (int64_t k : {1, 5, 16, 41}) {
      const int64_t n = 3;
      const double tau = 0.5;
      Set dots(n, k, 2, 3), grad(n, k, 2, 4);
      std::vector<double> inv_f = {1.0, 0.5, 2.0}, inv_p(k);
      for (int64_t c = 0; c < k; ++c) inv_p[c] = 1 + 0.1 * c;
      std::vector<float> w = dots.x;
      VIFAST_DISPATCH(relation_rows, w.data(), k, 0, n, inv_f.data(), inv_p.data(), tau);
      std::vector<float> back = grad.x;
      VIFAST_DISPATCH(relation_backward_rows, back.data(), w.data(), k, 0, n, inv_p.data(), tau);
      for (int64_t r = 0; r < n; ++r) {
        std::vector<double> row(dots.row(r), dots.row(r) + k);
        const std::vector<double> wanted = relation(row, inv_f[r], inv_p, tau);
        for (int64_t c = 0; c < k; ++c) {
          CHECK(near(w[r * k + c], wanted[c]));
          double slope = 0;
          for (double side : {1e-4, -1e-4}) {
            std::vector<double> moved = row;
            moved[c] += side;
            const std::vector<double> there = relation(moved, inv_f[r], inv_p, tau);
            for (int64_t j = 0; j < k; ++j) slope += grad.row(r)[j] * there[j] / (2 * side);
          }
          CHECK(near(back[r * k + c], slope / inv_f[r], 1e-3, 1e-4));  // the factors of p, before |f|
        }
      }
    }
  });
}

}  // namespace
}  // namespace vifast
