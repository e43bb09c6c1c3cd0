// Factors of the rows and temperatures of a distillation over two modalities, from the confidence of every row.
#pragma once
#include <cstdint>

namespace vifast {

enum class MaskRule : int32_t { percentile, fixed, ema, none };  // in the order of kernels/confidence_weights.py

struct WeightPlan {
  MaskRule rule;
  double level;  // percentile 0..100, threshold, or momentum
  bool high;     // the confident rows are kept
  bool rowwise, by_kept;
  int64_t n_temperatures;
  const double *fixed, *masked;  // [2, n_temperatures]
  float before;                  // running threshold of ema
};

// Rows [0, first) are the first modality, [first, n) the second. allowed [n] may be null. weights [n, n_temperatures]; mask [n]: work;
// kept: mean of the mask over the masked modalities; theta: the new running threshold, of ema.
void confidence_weights(const float* confidence, const float* allowed, int64_t n, int64_t first, const WeightPlan& plan,
                        float* mask, float* weights, float* kept, float* theta);

}  // namespace vifast
