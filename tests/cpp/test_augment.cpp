// Augmentation: Philox, its draws, and every step of a record against pixel-by-pixel arithmetic in double.
#include <algorithm>

#include "augment.h"
#include "augment_draws.h"
#include "check.h"
#include "philox.h"

namespace vifast {
namespace {

TEST(philox_gives_the_known_answers) {
  const Words words = philox({{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}}, 0xa4093822, 0x299f31d0);
  CHECK(words.w[0] == 0xd16cfe09 && words.w[1] == 0x94fdcceb && words.w[2] == 0x5001e420 && words.w[3] == 0x24126ea1);
  CHECK(below(0xffffffff, 5) == 4 && unit(0x80000000) == 0.5);
}

struct Batch {
  int64_t n, height, width;
  std::vector<uint8_t> images;
  std::vector<AugmentRecord> records;
  AugmentConstants constants{{0.017f, 0.018f, 0.019f}, {-2.1f, -2.0f, -1.8f}, -2.0f, {1, 2, 3, 2}, {0.3f, 0.6f, 0.1f}};

  Batch(int64_t n, int64_t height, int64_t width, int32_t most) : n(n), height(height), width(width), images(n * height * width * 3) {
    std::mt19937 random(1);
    for (uint8_t& v : images) v = static_cast<uint8_t>(random());
    records.resize(n);
    auto* columns = reinterpret_cast<int32_t*>(records.data());
    for (int64_t i = 0; i < n * kAugmentColumns; ++i) columns[i] = static_cast<int32_t>(random() % (2 * int64_t{most} + 1) - most);
    for (AugmentRecord& r : records) r.weight = static_cast<int32_t>(random() % 65537);
  }

  AugmentBatch of(float* out, bool past_caches) const {
    const Map map{out, Float::f32, n, 3, height * width, false};
    return {images.data(), records.data(), constants, 9, n, height, width, map, past_caches};
  }

  static bool in(AugmentBox box, int64_t y, int64_t x) {
    return y >= box.top && y < int64_t{box.top} + box.height && x >= box.left && x < int64_t{box.left} + box.width;
  }

  double window(int64_t i, int64_t y, int64_t x, int64_t c) const {
    const AugmentRecord& r = records[i];
    const int64_t row = y + r.dy, column = (r.flip >= 1 ? width - 1 - x : x) + r.dx;
    if (row < 0 || row >= height || column < 0 || column >= width) return 9;
    return images[((i * height + row) * width + column) * 3 + c];
  }

  double shown(int64_t i, int64_t y, int64_t x, int64_t c) const {
    const AugmentRecord& r = records[i];
    const int64_t partner = std::clamp<int64_t>(i + r.partner, 0, n - 1);
    const double own = r.weight / 65536.0, weight = in(r.mix, y, x) ? own : 1;
    double u[3], gray = constants.gray_shift, raw_gray = constants.shift[c];
    for (int k = 0; k < 3; ++k) {
      u[k] = weight * window(i, y, x, k) + (1 - weight) * window(partner, y, x, k);
      gray += u[k] * constants.scale[k] * constants.luminance[k];
      raw_gray += u[k] * constants.scale[c] * constants.luminance[k];
    }
    const bool colored = in(r.color, y, x) != (r.outside >= 1);
    const int32_t stage = std::clamp(r.stage, 0, 2), source = colored ? std::clamp(r.source[c], 0, 3) : static_cast<int32_t>(c);
    if (in(r.erase, y, x)) return constants.fill[colored && stage == 2 ? source : c];
    if (source == 3) return stage == 0 ? raw_gray : gray;
    const int64_t of = stage == 0 ? c : source;
    return u[source] * constants.scale[of] + constants.shift[of];
  }
};

TEST(every_step_of_a_record) {
  each_isa([] {
    for (int64_t width : {1, 7, 33, 64}) {
      for (int32_t most : {4, 40, 1 << 30}) {
        const Batch batch(24, 9, width, most);
        std::vector<float> out(batch.images.size() + 16), buffer(augment_buffer(width));
        float* aligned = out.data() + (64 - reinterpret_cast<uintptr_t>(out.data()) % 64) % 64 / sizeof(float);
        for (bool past_caches : {false, true}) {
          std::fill(out.begin(), out.end(), NAN);
          const int64_t rows = batch.n * batch.height;
          VIFAST_DISPATCH(augment_rows, batch.of(aligned, past_caches), 0, rows / 2, buffer.data());
          VIFAST_DISPATCH(augment_rows, batch.of(aligned, past_caches), rows / 2, rows, buffer.data());
          int64_t at = 0;
          for (int64_t i = 0; i < batch.n; ++i) {
            for (int64_t c = 0; c < 3; ++c) {
              for (int64_t y = 0; y < batch.height; ++y) {
                for (int64_t x = 0; x < width; ++x) CHECK(near(aligned[at++], batch.shown(i, y, x, c), 1e-5, 1e-5));
              }
            }
          }
        }
      }
    }
  });
}

TEST(drawn_records_lie_in_the_image) {
  const DrawOptions visible{0.5, 10, 0.5, 0.3, 1, 0, 2, 1, 0, 0, 0, 0.5, 0.7, 0.3, 0.1, 0.9, 0, 1.2, 0.2, 0.8, 1, 0.02, 1, 0.3, 3.3, 100};
  const DrawOptions infrared{0.5, 10, 0, 0.3, 0.6, 0, 0, 0, 0, 0.75, 0.125, 0, 0.7, 0.3, 0.1, 0.9, 0.5, 1.2, 0.2, 0.8, 1, 0.02, 0.4, 0.3, 3.3, 10};
  const DrawOptions options[] = {visible, infrared};
  const int64_t n = 2000;
  std::vector<int64_t> index(n), modality(n);
  for (int64_t i = 0; i < n; ++i) index[i] = i << 31, modality[i] = i % 2;
  for (int32_t side : {1, 2, 37}) {
    std::vector<AugmentRecord> records(n);
    draw_augment(index.data(), modality.data(), n, options, side, 2 * side, 1, 2, 0, records.data());
    for (const AugmentRecord& r : records) {
      for (AugmentBox box : {r.mix, r.color, r.erase}) {
        CHECK(box.top >= 0 && box.left >= 0 && box.height >= 0 && box.width >= 0);
        CHECK(box.top + box.height <= side && box.left + box.width <= 2 * side);
      }
      CHECK(std::abs(r.dy) <= 10 && std::abs(r.dx) <= 10);
    }
  }
}

}  // namespace
}  // namespace vifast
