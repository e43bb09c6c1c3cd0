// Augmentation of uint8 images in one pass; kernels/augment.py says what a record means and in which order its steps come.
#pragma once
#include <cstdint>

#include "planes.h"

namespace vifast {

struct AugmentBox {
  int32_t top, left, height, width;
};

// The columns of a record, in their order.
struct AugmentRecord {
  int32_t dy, dx, flip, partner, weight;
  AugmentBox mix;
  int32_t source[3], stage, outside;
  AugmentBox color, erase;
};
constexpr int64_t kAugmentColumns = sizeof(AugmentRecord) / sizeof(int32_t);

// As `constants` in kernels/augment.py; entry 3 of fill is its luminance.
struct AugmentConstants {
  float scale[3], shift[3], gray_shift, fill[4], luminance[3];
};
constexpr int64_t kAugmentConstants = sizeof(AugmentConstants) / sizeof(float);

struct AugmentBatch {
  const uint8_t* images;  // [n, height, width, 3]
  const AugmentRecord* records;
  AugmentConstants constants;
  uint8_t pad;
  int64_t n, height, width;
  Map out;  // [n, 3, height * width]
  bool past_caches;  // out is larger than they are
};

// Floats of the buffer that one thread needs.
inline int64_t augment_buffer(int64_t width) { return 6 * width + (9 * width + 3) / 4; }

// Rows [begin, end) of the n * height of a batch. Any record is safe: boxes and partners end at the borders.
VIFAST_DECLARE(augment_rows, (const AugmentBatch& batch, int64_t begin, int64_t end, float* buffer))

}  // namespace vifast
