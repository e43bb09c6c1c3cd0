#include "../blur_jitter.h"

#include <algorithm>
#include <numeric>

namespace vifast {

namespace {

// Pillow's Image.blend of one byte with `base`. The product goes through memory, so that none is fused into the sum.
uint8_t blended(float base, float factor, uint8_t value) {
  const volatile float part = factor * (value - base);
  const float sum = base + part;
  return !(sum > 0) ? 0 : sum >= 255 ? 255 : static_cast<uint8_t>(sum);
}

// The mean of the luminance of an image seen through a table, rounded to the nearest, half up.
float mean_luminance(const uint8_t* image, int64_t pixels, const uint8_t* table) {
  constexpr uint32_t kWeights[3] = {19595, 38470, 7471};  // of 65536
  uint32_t part[3][256];
  for (int c = 0; c < 3; ++c) {
    for (int v = 0; v < 256; ++v) part[c][v] = kWeights[c] * table[v];
  }
  int64_t total = 0;
  for (const uint8_t* p = image; p < image + 3 * pixels; p += 3) {
    total += (part[0][p[0]] + part[1][p[1]] + part[2][p[2]] + 32768) >> 16;
  }
  const int64_t count = std::max<int64_t>(pixels, 1);
  return static_cast<float>((2 * total + count) / (2 * count));
}

}  // namespace

void jitter_table(const uint8_t* image, int64_t pixels, const Jitter& jitter, uint8_t* table) {
  std::iota(table, table + 256, uint8_t{0});
  for (const bool contrast : {jitter.contrast_first, !jitter.contrast_first}) {
    const float factor = contrast ? jitter.contrast : jitter.brightness;
    if (factor == 1) continue;
    const float base = contrast ? mean_luminance(image, pixels, table) : 0.0f;
    for (int v = 0; v < 256; ++v) table[v] = blended(base, factor, table[v]);
  }
}

}  // namespace vifast
