// The records of a batch, drawn; `draw_ref` in vifast/data/draws.py is the definition.
#pragma once
#include <cstdint>

#include "augment.h"

namespace vifast {

// OPTIONS of vifast/data/draws.py, in their order.
struct DrawOptions {
  double flip, pad;
  double swap, swap_low, swap_high, swap_image, swap_fill, swap_outside, swap_raw;
  double channel, gray;
  double cutmix, cutmix_mean, cutmix_std, cutmix_low, cutmix_high;
  double mixup, mixup_alpha, mixup_low, mixup_high;
  double erase, area_low, area_high, aspect_low, aspect_high, tries;
};
constexpr int64_t kDrawOptions = sizeof(DrawOptions) / sizeof(double);

// Records of n samples by the options of their modality, 0 or 1. index, modality: [n].
void draw_augment(const int64_t* index, const int64_t* modality, int64_t n, const DrawOptions* options, int32_t height, int32_t width,
                  uint32_t seed, uint32_t epoch, uint32_t view, AugmentRecord* records);

}  // namespace vifast
