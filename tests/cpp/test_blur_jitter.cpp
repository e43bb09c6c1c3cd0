// Memory and sums of blur and jitter, in buffers without a byte to spare; values are compared with Pillow from Python.
#include "blur_jitter.h"
#include "check.h"

namespace vifast {
namespace {

// Equal taps, the middle one takes the rest: the weights sum to kTapSum.
std::vector<int32_t> flat_taps(int64_t radius) {
  std::vector<int32_t> taps(radius + 1, static_cast<int32_t>(kTapSum / (2 * radius + 1)));
  taps[0] = static_cast<int32_t>(kTapSum - 2 * radius * taps.back());
  return taps;
}

int64_t reflected(int64_t i, int64_t n) {
  if (i < 0) i = -i;
  return i < n ? i : 2 * (n - 1) - i;
}

TEST(blur_stays_in_its_memory_and_is_the_plain_sum) {
  each_isa([] {
    std::mt19937 random(1);
    for (int64_t height : {3, 7, 22}) {
      for (int64_t width : {3, 21, 22, 45}) {
        for (int64_t radius : {1, 2, 10}) {
          if (radius >= height || radius >= width) continue;
          const std::vector<int32_t> taps = flat_taps(radius);
          std::vector<uint8_t> image(3 * height * width), table(256), out(image.size());
          for (uint8_t& v : image) v = static_cast<uint8_t>(random());
          for (int v = 0; v < 256; ++v) table[v] = static_cast<uint8_t>(255 - v);
          std::vector<int32_t> space(blur_space(width, radius));
          const Blur blur{height, width, radius, table.data(), taps.data()};
          VIFAST_DISPATCH(blur_image, image.data(), blur, space.data(), out.data());
          for (int64_t y = 0; y < height; ++y) {
            for (int64_t x = 0; x < width; ++x) {
              for (int64_t c = 0; c < 3; ++c) {
                double sum = 0;
                for (int64_t i = -radius; i <= radius; ++i) {
                  for (int64_t j = -radius; j <= radius; ++j) {
                    const int64_t at = reflected(y + i, height) * width + reflected(x + j, width);
                    const double weight = static_cast<double>(taps[std::abs(i)]) * taps[std::abs(j)];
                    sum += weight * table[image[3 * at + c]];
                  }
                }
                const double mean = sum / kTapSum / kTapSum;
                CHECK(std::fabs(out[3 * (y * width + x) + c] - mean) < 0.51);  // rows are rounded once, to 2^-9
              }
            }
          }
        }
      }
    }
  });
}

TEST(jitter_of_nothing_is_the_identity_and_black_stays_in_range) {
  const std::vector<uint8_t> image(3 * 5, 7);
  std::vector<uint8_t> table(256);
  jitter_table(image.data(), 5, {1.0f, 1.0f, true}, table.data());
  for (int v = 0; v < 256; ++v) CHECK(table[v] == v);
  jitter_table(image.data(), 5, {0.0f, 1.0f, false}, table.data());
  for (int v = 0; v < 256; ++v) CHECK(table[v] == 0);
  jitter_table(image.data(), 5, {9.0f, 9.0f, true}, table.data());
  CHECK(table[0] == 0);
  CHECK(table[255] == 255);
}

}  // namespace
}  // namespace vifast
