#include "../augment_draws.h"

#include <algorithm>
#include <cmath>

#include "../philox.h"

namespace vifast {

namespace {

enum Slot : uint32_t { kFlip, kCrop, kCutSwap, kCutSwapBox, kExchange, kErase, kEraseBox, kCutMix, kCutMixBox, kMixUp, kMixUpWeight };
enum Stage : int32_t { kRaw, kNormalized, kErased };
constexpr int32_t kOne = 65536, kGray = 3;
constexpr uint32_t kMixUpTries = 100;
constexpr int32_t kPermutations[5][3] = {{0, 2, 1}, {1, 0, 2}, {1, 2, 0}, {2, 0, 1}, {2, 1, 0}};

void cut_swap(const Draws& draws, const DrawOptions& o, int32_t height, int32_t width, AugmentRecord& r) {
  const Words words = draws.at(kCutSwap), place = draws.at(kCutSwapBox);
  if (!(unit(words.w[0]) < o.swap)) return;
  const auto h = static_cast<int32_t>(std::floor(height * between(words.w[2], o.swap_low, o.swap_high)));
  const auto w = static_cast<int32_t>(std::floor(width * between(words.w[3], o.swap_low, o.swap_high)));
  if (h == 0 || w == 0) return;
  for (int c = 0; c < 3; ++c) {
    r.source[c] = o.swap_fill == 0 ? below(words.w[1], 3) : o.swap_fill == 1 ? kGray : kPermutations[below(words.w[1], 5)][c];
  }
  r.stage = o.swap_raw == 1 ? kRaw : kNormalized;
  r.outside = o.swap_image == 0 && o.swap_outside == 1;
  r.color = {below(place.w[0], height - h + 1), below(place.w[1], width - w + 1), h, w};
  if (o.swap_image == 1) r.color = {0, 0, height, width};
}

void exchange(const Draws& draws, const DrawOptions& o, int32_t height, int32_t width, AugmentRecord& r) {
  const Words words = draws.at(kExchange);
  const double u = unit(words.w[0]);
  if (!(u < o.channel + o.gray)) return;
  std::fill_n(r.source, 3, u < o.channel ? below(words.w[1], 3) : kGray);
  r.stage = kErased;
  r.outside = 0;
  r.color = {0, 0, height, width};
}

void cut_mix(const Draws& draws, const DrawOptions& o, int32_t height, int32_t width, AugmentRecord& r) {
  const Words words = draws.at(kCutMix), place = draws.at(kCutMixBox);
  if (!(unit(words.w[0]) < o.cutmix)) return;
  // Box and Muller. Rounded to float32 like mean and deviation, which makes their product exact.
  const auto bell = static_cast<float>(std::sqrt(-2 * std::log(1 - unit(words.w[1]))) * std::cos(2 * 3.141592653589793 * unit(words.w[2])));
  const double mean = static_cast<float>(o.cutmix_mean), deviation = static_cast<float>(o.cutmix_std);
  const double ratio = std::min(std::max(mean + deviation * bell, o.cutmix_low), o.cutmix_high);
  auto side = [&](int32_t n, uint32_t word, int32_t& start, int32_t& length) {
    const int32_t half = static_cast<int32_t>(std::floor(n * ratio)) / 2, center = below(word, n);
    start = std::max(center - half, 0);
    length = std::min(center + half, n) - start;
  };
  side(height, place.w[0], r.mix.top, r.mix.height);
  side(width, place.w[1], r.mix.left, r.mix.width);
}

void mix_up(const Draws& draws, const DrawOptions& o, int32_t height, int32_t width, AugmentRecord& r) {
  if (!(unit(draws.at(kMixUp).w[0]) < o.mixup)) return;
  double weight = 0.5;
  for (uint32_t attempt = 0; attempt < kMixUpTries; ++attempt) {  // Joehnk
    const Words words = draws.at(kMixUpWeight, attempt);
    const double a = std::pow(unit(words.w[0]), 1 / o.mixup_alpha), b = std::pow(unit(words.w[1]), 1 / o.mixup_alpha);
    if (a + b > 1 || a + b == 0) continue;
    weight = a / (a + b);
    break;
  }
  r.weight = static_cast<int32_t>(std::nearbyint(std::min(std::max(weight, o.mixup_low), o.mixup_high) * kOne));
  r.mix = {0, 0, height, width};
}

void erase(const Draws& draws, const DrawOptions& o, int32_t height, int32_t width, AugmentRecord& r) {
  if (!(unit(draws.at(kErase).w[0]) < o.erase)) return;
  const double pixels = static_cast<double>(height) * width;
  for (uint32_t attempt = 0; attempt < o.tries; ++attempt) {
    const Words words = draws.at(kEraseBox, attempt);
    const double area = pixels * between(words.w[0], o.area_low, o.area_high), aspect = between(words.w[1], o.aspect_low, o.aspect_high);
    const double h = std::nearbyint(std::sqrt(area * aspect)), w = std::nearbyint(std::sqrt(area / aspect));
    if (!(h < height && w < width)) continue;
    const auto rows = static_cast<int32_t>(h), columns = static_cast<int32_t>(w);
    r.erase = {below(words.w[2], height - rows + 1), below(words.w[3], width - columns + 1), rows, columns};
    return;
  }
}

}  // namespace

void draw_augment(const int64_t* index, const int64_t* modality, int64_t n, const DrawOptions* options, int32_t height, int32_t width,
                  uint32_t seed, uint32_t epoch, uint32_t view, AugmentRecord* records) {
  for (int64_t i = 0; i < n; ++i) {
    const Draws draws{seed, epoch, view, static_cast<uint64_t>(index[i])};
    const DrawOptions& o = options[modality[i]];
    AugmentRecord& r = records[i] = {};
    r.flip = unit(draws.at(kFlip).w[0]) < o.flip;
    const Words crop = draws.at(kCrop);
    const auto pad = static_cast<int32_t>(o.pad);
    r.dy = below(crop.w[0], 2 * int64_t{pad} + 1) - pad;
    r.dx = below(crop.w[1], 2 * int64_t{pad} + 1) - pad;
    cut_swap(draws, o, height, width, r);
    exchange(draws, o, height, width, r);
    cut_mix(draws, o, height, width, r);
    mix_up(draws, o, height, width, r);
    erase(draws, o, height, width, r);
  }
}

}  // namespace vifast
