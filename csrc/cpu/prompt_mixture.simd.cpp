#include "../prompt_mixture.h"

#include "lanes-inl.h"

namespace vifast::VIFAST_ISA {

namespace {

// Beyond 43 a sigmoid is 0 or 1 to 2e-19.
inline Lanes sigmoid(Lanes x) { return 1.0f / (1.0f + exp_lanes(at_most(at_least(-x, -43.0f), 43.0f))); }

inline Lanes relu(Lanes v) { return v < 0.0f ? Lanes{} : v; }

// What one register of positions needs of the common planes and of their gates.
struct Register {
  const PromptPlanes& in;
  int64_t at, left;
  Lanes *raw, *normed;  // [gate], after their relu

  Lanes h(int64_t c) const { return load(in.hidden + (in.specific + c) * in.positions + at, left); }
  Lanes y(int64_t r) const { return (load(in.hidden + r * in.positions + at, left) - in.mean[r]) * in.rstd[r]; }
  Lanes u(int64_t r) const { return y(r) * in.weight[r] + in.bias[r]; }
  Lanes n(int64_t c) const { return u(in.specific + c); }

  void inner() const {
    for (int64_t j = 0; j < in.gate; ++j) {
      Lanes first{}, second{};
      for (int64_t c = 0; c < in.common; ++c) {
        first += in.raw_down[j * in.common + c] * h(c);
        second += in.normed_down[j * in.common + c] * n(c);
      }
      raw[j] = relu(first);
      normed[j] = relu(second);
    }
  }
  Lanes gate(int64_t c, const float* up, const Lanes* of) const {
    Lanes logit{};
    for (int64_t j = 0; j < in.gate; ++j) logit += up[c * in.gate + j] * of[j];
    return sigmoid(logit);
  }
};

}  // namespace

void prompt_mixture_forward(const PromptPlanes& in, float* out, float* scratch) {
  Lanes* inner = reinterpret_cast<Lanes*>(scratch);
  for (int64_t i = 0; i < in.positions; i += kLanes) {
    const Register x{in, i, in.positions - i, inner, inner + in.gate};
    for (int64_t r = 0; r < in.specific; ++r) store(out + r * in.positions + i, x.u(r), x.left);
    if (in.common > 0) x.inner();
    for (int64_t c = 0; c < in.common; ++c) {
      const Lanes a = x.gate(c, in.raw_up, x.raw), b = x.gate(c, in.normed_up, x.normed);
      store(out + (in.specific + c) * in.positions + i, a * x.h(c) + (1.0f - a) * (b * x.n(c)), x.left);
    }
  }
}

void prompt_mixture_backward(const PromptPlanes& in, bool instance, const float* grad, float* to_hidden, float* sums, float* to_gates,
                             float* scratch) {
  Lanes *inner = reinterpret_cast<Lanes*>(scratch), *to_raw = inner + 2 * in.gate, *to_normed = to_raw + in.gate;
  Lanes* matrices = to_normed + in.gate;  // raw_down, raw_up, normed_down, normed_up
  float* to_n = reinterpret_cast<float*>(matrices + 4 * in.gates());  // [common, positions]
  const int64_t size = in.gates();
  for (int64_t k = 0; k < 4 * size; ++k) matrices[k] = Lanes{};
  for (int64_t i = 0; i < in.positions && in.common > 0; i += kLanes) {
    const Register x{in, i, in.positions - i, inner, inner + in.gate};
    x.inner();
    for (int64_t j = 0; j < in.gate; ++j) to_raw[j] = to_normed[j] = Lanes{};
    for (int64_t c = 0; c < in.common; ++c) {
      const int64_t plane = (in.specific + c) * in.positions + i;
      const Lanes g = load(grad + plane, x.left), h = x.h(c), n = x.n(c);
      const Lanes a = x.gate(c, in.raw_up, x.raw), b = x.gate(c, in.normed_up, x.normed);
      const Lanes of_raw = g * (h - b * n) * (a * (1.0f - a)), of_normed = g * (1.0f - a) * n * (b * (1.0f - b));
      for (int64_t j = 0; j < in.gate; ++j) {
        to_raw[j] += in.raw_up[c * in.gate + j] * of_raw;
        to_normed[j] += in.normed_up[c * in.gate + j] * of_normed;
        matrices[size + c * in.gate + j] += of_raw * x.raw[j];
        matrices[3 * size + c * in.gate + j] += of_normed * x.normed[j];
      }
      store(to_hidden + plane, g * a, x.left);
      store(to_n + c * in.positions + i, g * (1.0f - a) * b, x.left);
    }
    for (int64_t j = 0; j < in.gate; ++j) {
      to_raw[j] = x.raw[j] > 0.0f ? to_raw[j] : Lanes{};
      to_normed[j] = x.normed[j] > 0.0f ? to_normed[j] : Lanes{};
    }
    for (int64_t c = 0; c < in.common; ++c) {
      const int64_t plane = (in.specific + c) * in.positions + i;
      const Lanes h = x.h(c), n = x.n(c);
      Lanes to_h = load(to_hidden + plane, x.left), through = load(to_n + c * in.positions + i, x.left);
      for (int64_t j = 0; j < in.gate; ++j) {
        const int64_t entry = j * in.common + c;
        to_h += in.raw_down[entry] * to_raw[j];
        through += in.normed_down[entry] * to_normed[j];
        matrices[entry] += to_raw[j] * h;
        matrices[2 * size + entry] += to_normed[j] * n;
      }
      store(to_hidden + plane, to_h, x.left);
      store(to_n + c * in.positions + i, through, x.left);
    }
  }
  for (int64_t k = 0; k < 4 * size; ++k) to_gates[k] = sum(matrices[k]);
  for (int64_t r = 0; r < in.planes(); ++r) {
    const float* to_u = r < in.specific ? grad + r * in.positions : to_n + (r - in.specific) * in.positions;
    Lanes total{}, slope{};
    for (int64_t i = 0; i < in.positions; i += kLanes) {
      const Register x{in, i, in.positions - i, nullptr, nullptr};
      const Lanes d = load(to_u + i, x.left);
      total += d;  // 0 beyond the last position
      slope += first(d * x.y(r), x.left);
    }
    sums[2 * r] = sum(total);
    sums[2 * r + 1] = sum(slope);
    if (r < in.specific) continue;
    const float share = instance ? 1.0f / in.positions : 0.0f, scale = in.rstd[r] * in.weight[r];
    for (int64_t i = 0; i < in.positions; i += kLanes) {
      const Register x{in, i, in.positions - i, nullptr, nullptr};
      float* to = to_hidden + r * in.positions + i;
      const Lanes step = load(to_u + i, x.left) - share * sums[2 * r] - x.y(r) * (share * sums[2 * r + 1]);
      store(to, load(to, x.left) + scale * step, x.left);
    }
  }
}

void prompt_mixture_batch(const PromptPlanes& in, const float* means, const float* grad, float* to_hidden) {
  for (int64_t r = 0; r < in.specific; ++r) {
    const float scale = in.rstd[r] * in.weight[r];
    for (int64_t i = 0; i < in.positions; i += kLanes) {
      const Register x{in, i, in.positions - i, nullptr, nullptr};
      const int64_t at = r * in.positions + i;
      store(to_hidden + at, scale * (load(grad + at, x.left) - means[2 * r] - x.y(r) * means[2 * r + 1]), x.left);
    }
  }
}

}  // namespace vifast::VIFAST_ISA
