// Feature maps as planes: the positions of one channel of one image, one after another in float32. The arithmetic of the ops on
// maps sees nothing else; other dtypes and channels-last maps pass through a buffer that stays in cache.
#pragma once
#include <cstdint>

#include "isa.h"

namespace vifast {

enum class Float : int { f32, f16, bf16 };

struct Map {
  void* data;
  Float kind;
  int64_t images, channels, positions;
  bool channels_last;
  bool in_place() const { return kind == Float::f32 && !channels_last; }
};

constexpr int64_t kPlanes = 16;  // planes taken at once: one cache line of a channels-last map of float32

// Planes [channel, channel + n) of one image to out [n, positions], and back; n <= kPlanes.
VIFAST_DECLARE(load_planes, (const Map& map, int64_t image, int64_t channel, int64_t n, float* out))
VIFAST_DECLARE(store_planes, (const Map& map, int64_t image, int64_t channel, int64_t n, const float* planes))

// Mean and biased variance of each of n planes.
VIFAST_DECLARE(plane_stats, (const float* x, int64_t n, int64_t positions, float* mean, float* var))

}  // namespace vifast
