#include "../confidence_weights.h"

#include <algorithm>
#include <cmath>

#include "../percentile_mask.h"

namespace vifast {

namespace {

struct Side {
  int64_t begin, end;
  const double *fixed, *masked;
  bool on;  // whether the mask counts at all
};

float running_threshold(const float* confidence, const Side* sides, const WeightPlan& plan) {
  double sum = 0;
  int64_t rows = 0;
  for (const Side* side = sides; side < sides + 2; ++side) {
    if (!side->on) continue;
    for (int64_t i = side->begin; i < side->end; ++i) sum += confidence[i];
    rows += side->end - side->begin;
  }
  const double mean = sum / rows;
  if (!std::isfinite(mean)) return plan.before;
  return static_cast<float>(std::isnan(plan.before) ? mean : plan.level * plan.before + (1 - plan.level) * mean);
}

void mask_side(const float* confidence, const Side& side, const WeightPlan& plan, float threshold, float* mask) {
  const int64_t n = side.end - side.begin;
  if (!side.on || plan.rule == MaskRule::none) {
    std::fill(mask, mask + n, 1.0f);
  } else if (plan.rule == MaskRule::percentile) {
    percentile_mask(confidence, n, plan.level, plan.high, mask);
  } else {
    for (int64_t i = 0; i < n; ++i) {
      mask[i] = (plan.high ? confidence[i] >= threshold : confidence[i] <= threshold) ? 1.0f : 0.0f;
    }
  }
}

}  // namespace

void confidence_weights(const float* confidence, const float* allowed, int64_t n, int64_t first, const WeightPlan& plan,
                        float* mask, float* weights, float* kept, float* theta) {
  const int64_t n_t = plan.n_temperatures;
  Side sides[2] = {{0, first, plan.fixed, plan.masked, false}, {first, n, plan.fixed + n_t, plan.masked + n_t, false}};
  for (Side& side : sides) side.on = std::any_of(side.masked, side.masked + n_t, [](double factor) { return factor != 0; });
  float threshold = static_cast<float>(plan.level);
  *theta = 0;
  if (plan.rule == MaskRule::ema) *theta = threshold = running_threshold(confidence, sides, plan);
  double kept_rows = 0, masked_rows = 0;
  for (const Side& side : sides) {
    float* own = mask + side.begin;
    const int64_t rows = side.end - side.begin;
    mask_side(confidence + side.begin, side, plan, threshold, own);
    if (side.on && allowed != nullptr) {
      for (int64_t i = 0; i < rows; ++i) own[i] *= allowed[side.begin + i];
    }
    double count = 0;
    for (int64_t i = 0; i < rows; ++i) count += own[i];
    if (side.on) {
      kept_rows += count;
      masked_rows += rows;
    }
    const double size = std::max<int64_t>(rows, 1), divisor = plan.by_kept ? std::max(count, 1.0) : size;
    for (int64_t i = 0; i < rows; ++i) {
      const double share = (plan.rowwise ? own[i] : count / size) / divisor;
      float* out = weights + (side.begin + i) * n_t;
      for (int64_t t = 0; t < n_t; ++t) out[t] = static_cast<float>(side.fixed[t] / size + side.masked[t] * share);
    }
  }
  *kept = masked_rows > 0 ? static_cast<float>(kept_rows / masked_rows) : 1.0f;
}

}  // namespace vifast
