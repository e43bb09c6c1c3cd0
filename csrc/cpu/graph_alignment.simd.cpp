#include "../graph_alignment.h"

#include <cmath>

#include "distance-inl.h"

namespace vifast::VIFAST_ISA {

namespace {

void raise_max(GraphSide s, int64_t i, double candidate) {
  if (!(candidate > s.m[i])) return;
  const double shrink = std::exp(s.m[i] - candidate);
  s.z[i] *= shrink;
  s.t[i] *= shrink;
  s.m[i] = candidate;
}

void fold_row(const float* u, const float* v, int64_t cols, int64_t skip, double scale, GraphSide p, GraphSide q, int64_t i) {
  double u_max = -INFINITY, v_max = -INFINITY;
#pragma omp simd reduction(max : u_max, v_max)
  for (int64_t c = 0; c < cols; ++c) {
    const double lu = c == skip ? -INFINITY : scale * u[c], lv = c == skip ? -INFINITY : scale * v[c];
    u_max = lu > u_max ? lu : u_max;
    v_max = lv > v_max ? lv : v_max;
  }
  raise_max(p, i, u_max);
  raise_max(q, i, v_max);
  const double um = p.m[i], vm = q.m[i];
  double uz = 0, ut = 0, vz = 0, vt = 0;
#pragma omp simd reduction(+ : uz, ut, vz, vt)
  for (int64_t c = 0; c < cols; ++c) {
    const double lu = scale * u[c], lv = scale * v[c], delta = lv - lu;
    const double eu = exp_inline(lu - um), ev = exp_inline(lv - vm);
    uz += c == skip ? 0.0 : eu;
    ut += c == skip ? 0.0 : eu * delta;
    vz += c == skip ? 0.0 : ev;
    vt += c == skip ? 0.0 : ev * delta;
  }
  p.z[i] += uz;
  p.t[i] += ut;
  q.z[i] += vz;
  q.t[i] += vt;
}

}  // namespace

void graph_fold_rows(const float* u, const float* v, int64_t cols, int64_t r0, int64_t r1, bool skip_own, double scale, GraphSide p,
                     GraphSide q) {
  for (int64_t r = r0; r < r1; ++r) fold_row(u + r * cols, v + r * cols, cols, skip_own ? r : -1, scale, p, q, r);
}

void graph_fold_cols(const float* u, const float* v, int64_t rows, int64_t cols, int64_t c0, int64_t c1, double scale, GraphSide p,
                     GraphSide q) {
  float u_cols[kFlipCols][kFlipRows], v_cols[kFlipCols][kFlipRows];
  for (int64_t c = c0; c < c1; c += kFlipCols) {
    const int64_t n_cols = c1 - c < kFlipCols ? c1 - c : kFlipCols;
    for (int64_t r = 0; r < rows; r += kFlipRows) {
      const int64_t n_rows = rows - r < kFlipRows ? rows - r : kFlipRows;
      flip(u, cols, r, n_rows, c, n_cols, u_cols);
      flip(v, cols, r, n_rows, c, n_cols, v_cols);
      for (int64_t k = 0; k < n_cols; ++k) fold_row(u_cols[k], v_cols[k], n_rows, -1, scale, p, q, c + k);
    }
  }
}

void graph_backward_rows(float* u, float* v, int64_t cols, int64_t r0, int64_t r1, bool own, GraphKind kind, bool symmetric, GraphSaved a,
                         GraphSaved b, double* u_sum, double* v_sum) {
  const double both = symmetric ? 1 : 0, scale = kind.scale;
  const float clamped = kind.root ? kind.floor * 1.0001f : -1.0f;  // no gradient through a clamped entry
  for (int64_t r = r0; r < r1; ++r) {
    float *u_row = u + r * cols, *v_row = v + r * cols;
    const int64_t skip = own ? r : -1;
    double u_total = 0, v_total = 0;
#pragma omp simd reduction(+ : u_total, v_total)
    for (int64_t c = 0; c < cols; ++c) {
      const float du = u_row[c], dv = v_row[c];
      const double lu = scale * du, lv = scale * dv, delta = lv - lu;
      const double p_a = exp_inline(lu - a.u_max[r]) * a.u_inv_z[r], q_a = exp_inline(lv - a.v_max[r]) * a.v_inv_z[r];
      const double p_b = exp_inline(lu - b.u_max[c]) * b.u_inv_z[c], q_b = exp_inline(lv - b.v_max[c]) * b.v_inv_z[c];
      const double u_grad = a.grad[r] * (p_a - q_a - both * p_a * (delta - a.u_mean[r])) +
                            b.grad[c] * (p_b - q_b - both * p_b * (delta - b.u_mean[c]));
      const double v_grad = a.grad[r] * (both * (q_a - p_a) + q_a * (delta - a.v_mean[r])) +
                            b.grad[c] * (both * (q_b - p_b) + q_b * (delta - b.v_mean[c]));
      const double u_slope = du * du <= clamped ? 0.0 : kind.root ? 1 / static_cast<double>(du) : 2 * scale;
      const double v_slope = dv * dv <= clamped ? 0.0 : kind.root ? 1 / static_cast<double>(dv) : 2 * scale;
      const float u_weight = c == skip ? 0.0f : static_cast<float>(-u_grad * u_slope);
      const float v_weight = c == skip ? 0.0f : static_cast<float>(-v_grad * v_slope);
      u_row[c] = u_weight;
      v_row[c] = v_weight;
      u_total += u_weight;
      v_total += v_weight;
    }
    u_sum[r] += u_total;
    v_sum[r] += v_total;
  }
}

}  // namespace vifast::VIFAST_ISA
