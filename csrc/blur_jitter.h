// Brightness, contrast and Gaussian blur of images of bytes [height, width, 3], see kernels/blur_jitter.py.
#pragma once
#include <cstdint>

#include "isa.h"

namespace vifast {

constexpr int64_t kTapSum = int64_t{1} << 22;  // of the taps of a blur, the middle one once and all others twice
constexpr int64_t kBlurColumns = 64;           // a multiple of what any instruction set sums in registers

struct Jitter {
  float brightness, contrast;  // 1: no change
  bool contrast_first;
};

// table[v]: what a byte v of the image becomes.
void jitter_table(const uint8_t* image, int64_t pixels, const Jitter& jitter, uint8_t* table);

struct Blur {
  int64_t height, width, radius;  // radius < height, width
  const uint8_t* table;           // applied to the image first
  const int32_t* taps;            // [radius + 1] by distance
};

// Static: each instruction set has its own. Rows blurred along their length are a ring of 2 radius + 1, padded to whole registers.
static inline int64_t ring_columns(int64_t width) { return (3 * width + kBlurColumns - 1) / kBlurColumns * kBlurColumns; }
static inline int64_t blur_space(int64_t width, int64_t radius) { return (2 * radius + 2) * ring_columns(width) + 6 * radius; }

// `space`: blur_space(width, radius) zeros, of the ring and one row with its borders.
VIFAST_DECLARE(blur_image, (const uint8_t* image, const Blur& blur, int32_t* space, uint8_t* out))

}  // namespace vifast
