#include "../gem_pool.h"

#include <cmath>

#include "lanes-inl.h"

namespace vifast::VIFAST_ISA {

namespace {

// ln(x) to 2 ulp for normal x > 0.
inline Lanes log_lanes(Lanes x) {
  IntLanes bits;
  std::memcpy(&bits, &x, sizeof(bits));
  const IntLanes low = (bits & 0x007fffff) | 0x3f800000;
  Lanes mantissa;  // in [1, 2)
  std::memcpy(&mantissa, &low, sizeof(mantissa));
  const IntLanes upper = mantissa > 1.41421356f;  // -1 where true
  const Lanes e = __builtin_convertvector((bits >> 23) - 127 - upper, Lanes);
  const Lanes f = (upper ? 0.5f * mantissa : mantissa) - 1.0f;
  Lanes p = all(7.0376836292e-2f);
  p = p * f - 1.1514610310e-1f;
  p = p * f + 1.1676998740e-1f;
  p = p * f - 1.2420140846e-1f;
  p = p * f + 1.4249322787e-1f;
  p = p * f - 1.6668057665e-1f;
  p = p * f + 2.0000714765e-1f;
  p = p * f - 2.4999993993e-1f;
  p = p * f + 3.3333331174e-1f;
  const Lanes square = f * f;
  return f + (f * square * p - 2.12194440e-4f * e - 0.5f * square) + 0.693359375f * e;
}

// x^p for x >= 0; NaN for x < 0. at_zero: the value for x = 0.
inline Lanes power(Lanes x, float p, float at_zero) {
  const Lanes e = p * log_lanes(x);
  const Lanes inside = e > 87.0f ? all(INFINITY) : exp_lanes(at_least(at_most(e, 87.0f), -87.0f));
  const Lanes other = x == 0.0f ? all(at_zero) : all(NAN);
  return x - x == 0.0f ? (x > 0.0f ? inside : other) : x;
}

// Without the clamp, a floor under everything.
float floor_of(Gem gem) { return gem.clamp ? gem.eps : -INFINITY; }

float root(float mean, Gem gem) { return static_cast<float>(::pow(mean + (gem.clamp ? 0.0 : gem.eps), 1.0 / gem.p)); }

}  // namespace

void gem_forward(const float* x, int64_t n, int64_t positions, Gem gem, float* out) {
  const float floor = floor_of(gem);
  for (int64_t k = 0; k < n; ++k) {
    const float* plane = x + k * positions;
    auto term = [&](Lanes v) {
      v = at_least(v, floor);
      return gem.p == 3 ? v * v * v : power(v, gem.p, 0.0f);
    };
    Lanes even{}, odd{};  // two sums, for one would wait for itself
    int64_t i = 0;
    for (; i + 2 * kLanes <= positions; i += 2 * kLanes) {
      even += term(load(plane + i, kLanes));
      odd += term(load(plane + i + kLanes, kLanes));
    }
    for (; i < positions; i += kLanes) even += first(term(load(plane + i, positions - i)), positions - i);
    out[k] = sum(even + odd) / positions;
    if (gem.p != 3 || !gem.clamp) out[k] = root(out[k], gem);
  }
  if (gem.p != 3 || !gem.clamp) return;
  for (int64_t k = 0; k < n; k += kLanes) store(out + k, cube_root(load(out + k, n - k)), n - k);
}

void gem_backward(const float* x, int64_t n, int64_t positions, Gem gem, const float* grad, const float* out, float* grad_x,
                  float* grad_p) {
  const float floor = floor_of(gem), slope_at_zero = gem.p > 1 ? 0.0f : (gem.p == 1 ? 1.0f : INFINITY);
  for (int64_t k = 0; k < n; ++k) {
    const float g = out[k] < floor ? floor : out[k], inverse = 1 / g, share = grad[k] / positions;
    Lanes total{};
    int64_t i = 0;
    if (gem.p == 3 && grad_p == nullptr) {  // the usual case, without a question in the loop
      for (; i + kLanes <= positions; i += kLanes) {
        const Lanes v = load(x + k * positions + i, kLanes), r = at_least(v, floor) * inverse;
        store(grad_x + k * positions + i, v < floor ? Lanes{} : share * (r * r), kLanes);
      }
    }
    for (; i < positions; i += kLanes) {
      const int64_t left = positions - i;
      const Lanes v = load(x + k * positions + i, left), r = at_least(v, floor) * inverse;
      const Lanes slope = gem.p == 3 ? r * r : power(r, gem.p - 1, slope_at_zero);
      store(grad_x + k * positions + i, v < floor ? Lanes{} : share * slope, left);
      if (grad_p != nullptr) total += first(r == 0.0f ? Lanes{} : power(r, gem.p, 0.0f) * log_lanes(r), left);
    }
    if (grad_p == nullptr) continue;
    double slope = sum(total) / static_cast<double>(positions);
    if (!gem.clamp) slope -= gem.eps * ::log(static_cast<double>(g)) * ::pow(static_cast<double>(g), -static_cast<double>(gem.p));
    grad_p[k] = static_cast<float>(grad[k] * g / gem.p * slope);
  }
}

}  // namespace vifast::VIFAST_ISA
