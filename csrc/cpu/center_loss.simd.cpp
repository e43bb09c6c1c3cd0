#include "../center_loss.h"

#include "distance-inl.h"

namespace vifast::VIFAST_ISA {

namespace {

constexpr int64_t kChunk = 256;  // columns summed at once

}  // namespace

void center_distances(const float* x, const int64_t* codes, const float* centers, int64_t k, int64_t d, int64_t r0, int64_t r1,
                      double* square) {
  for (int64_t i = r0; i < r1; ++i) {
    const bool inside = codes[i] >= 0 && codes[i] < k;
    square[i] = inside ? direct_sqdist(x + i * d, centers + codes[i] * d, d) : 0;
  }
}

void center_pull(const float* x, int64_t d, const float* center, const int64_t* rows, int64_t count, float weight, int64_t c0, int64_t c1,
                 float* to_x, float* to_center) {
  double sum[kChunk];
  for (int64_t c = c0; c < c1; c += kChunk) {
    const int64_t width = c1 - c < kChunk ? c1 - c : kChunk;
    for (int64_t j = 0; j < width; ++j) sum[j] = 0;
    for (int64_t i = 0; i < count; ++i) {
      const float *row = x + rows[i] * d + c, *own = center + c;
      float* out = to_x == nullptr ? nullptr : to_x + rows[i] * d + c;
#pragma omp simd
      for (int64_t j = 0; j < width; ++j) {
        const float step = weight * (row[j] - own[j]);
        if (out != nullptr) out[j] = step;
        sum[j] -= step;
      }
    }
    for (int64_t j = 0; to_center != nullptr && j < width; ++j) to_center[c + j] = static_cast<float>(sum[j]);
  }
}

}  // namespace vifast::VIFAST_ISA
