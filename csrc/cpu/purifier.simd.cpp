#include "../purifier.h"

#include "lanes-inl.h"

namespace vifast::VIFAST_ISA {

namespace {

// e^-a and e^-b, from which both sigmoids follow by one division. Beyond 43 a sigmoid is 0 or 1 to 2e-19.
struct Gates {
  Lanes e, f, s, t;
};

inline Gates gates(Lanes a, Lanes b) {
  const Lanes e = exp_lanes(at_most(at_least(-a, -43.0f), 43.0f)), f = exp_lanes(at_most(at_least(-b, -43.0f), 43.0f));
  const Lanes inverse = 1.0f / ((1.0f + e) * (1.0f + f));
  return {e, f, (1.0f + f) * inverse, (1.0f + e) * inverse};
}

inline Lanes cube(Lanes v) {
  v = at_least(v, kPurifierEps);
  return v * v * v;
}

// Gradient of a pooled value to one of its positions: share (v / pooled)^2 where v was not clamped.
inline Lanes through_pool(Lanes v, float share, float inverse) {
  const Lanes r = v * inverse;
  return v >= kPurifierEps ? share * r * r : Lanes{};
}

}  // namespace

void purifier_forward(PurifierPlanes in, float* pooled, int64_t stride) {
  for (int64_t k = 0; k < in.n; ++k) {
    const int64_t at = k * in.positions;
    const float mean = in.mean[k], scale = in.rstd[k] * in.weight[k], bias = in.bias[k];
    Lanes both{}, raw{}, masked{}, normed{}, normed_masked{};
    for (int64_t i = 0; i < in.positions; i += kLanes) {
      const int64_t left = in.positions - i;
      const Lanes x = load(in.x + at + i, left), u = (x - mean) * scale + bias;
      const Gates g = gates(load(in.gate_u + at + i, left), load(in.gate_x + at + i, left));
      both += first(cube(g.s * g.t * (x + u)), left);
      raw += first(cube(x), left);
      masked += first(cube(g.t * x), left);
      normed += first(cube(u), left);
      normed_masked += first(cube(g.s * u), left);
    }
    const Lanes sums[] = {both, raw, masked, normed, normed_masked};
    for (int v = 0; v < 5; ++v) pooled[v * stride + k] = sum(sums[v]) / in.positions;
  }
  for (int v = 0; v < 5; ++v) {
    float* row = pooled + v * stride;
    for (int64_t k = 0; k < in.n; k += kLanes) store(row + k, cube_root(load(row + k, in.n - k)), in.n - k);
  }
}

void purifier_backward(PurifierPlanes in, bool instance, const float* grad, const float* pooled, int64_t stride, float* to_x,
                       float* to_gate_u, float* to_gate_x, float* sums, float* step) {
  for (int64_t k = 0; k < in.n; ++k) {
    const int64_t at = k * in.positions;
    const float mean = in.mean[k], rstd = in.rstd[k], weight = in.weight[k], bias = in.bias[k];
    float share[5], inverse[5];
    for (int v = 0; v < 5; ++v) {
      share[v] = grad[v * stride + k] / in.positions;
      inverse[v] = 1 / pooled[v * stride + k];
    }
    Lanes steps{}, steps_y{};
    for (int64_t i = 0; i < in.positions; i += kLanes) {
      const int64_t left = in.positions - i;
      const Lanes x = load(in.x + at + i, left), y = (x - mean) * rstd, u = y * weight + bias;
      const Gates g = gates(load(in.gate_u + at + i, left), load(in.gate_x + at + i, left));
      const Lanes both = through_pool(g.s * g.t * (x + u), share[0], inverse[0]);
      const Lanes masked = through_pool(g.t * x, share[2], inverse[2]);
      const Lanes normed_masked = through_pool(g.s * u, share[4], inverse[4]);
      const Lanes to_u = through_pool(u, share[3], inverse[3]) + g.s * (normed_masked + g.t * both);
      store(to_gate_u + at + i, (u * normed_masked + g.t * (x + u) * both) * (g.s * g.s * g.e), left);
      store(to_gate_x + at + i, (x * masked + g.s * (x + u) * both) * (g.t * g.t * g.f), left);
      store(to_x + at + i, through_pool(x, share[1], inverse[1]) + g.t * (masked + g.s * both), left);
      store(step + i, to_u, left);
      steps += first(to_u, left);
      steps_y += first(to_u * y, left);
    }
    sums[k] = sum(steps);
    sums[stride + k] = sum(steps_y);
    const float scale = rstd * weight, center = instance ? sums[k] / in.positions : 0.0f;
    const float slope = instance ? sums[stride + k] / in.positions : 0.0f;
    for (int64_t i = 0; i < in.positions; i += kLanes) {
      const int64_t left = in.positions - i;
      const Lanes y = (load(in.x + at + i, left) - mean) * rstd;
      store(to_x + at + i, load(to_x + at + i, left) + scale * (load(step + i, left) - center - y * slope), left);
    }
  }
}

}  // namespace vifast::VIFAST_ISA
