#include "../blur_jitter.h"

#include "lanes-inl.h"

namespace vifast::VIFAST_ISA {

namespace {

constexpr int64_t kVectors = 4, kStep = kVectors * kLanes;  // columns summed in registers
static_assert(kBlurColumns % kStep == 0, "padding of rows");
constexpr int64_t kHalf = kLanes / 2;
typedef int32_t IntHalf __attribute__((vector_size(4 * kHalf)));
typedef double Wide __attribute__((vector_size(8 * kHalf)));

template <class T>
static inline T at(const int32_t* from) {
  T v;
  std::memcpy(&v, from, sizeof(v));
  return v;
}

static inline int64_t reflected(int64_t at, int64_t last) {
  at = at < 0 ? -at : at;
  return at > last ? 2 * last - at : at;
}

// A row with its borders, as integers.
void widen(const uint8_t* row, const Blur& blur, int32_t* wide) {
  int32_t *left = wide + 3 * blur.radius, *right = left + 3 * (blur.width - 1);
  for (int64_t i = 0; i < 3 * blur.width; ++i) left[i] = blur.table[row[i]];
  for (int64_t k = 3; k <= 3 * blur.radius; k += 3) {
    for (int64_t c = 0; c < 3; ++c) {
      left[c - k] = left[c + k];
      right[c + k] = right[c - k];
    }
  }
}

void blur_row(const int32_t* wide, const Blur& blur, int32_t* out) {
  for (int64_t j = 0; j < ring_columns(blur.width); j += kStep) {
    const int32_t* middle = wide + 3 * blur.radius + j;
    IntLanes sum[kVectors];
    for (int64_t v = 0; v < kVectors; ++v) sum[v] = blur.taps[0] * at<IntLanes>(middle + v * kLanes);
    for (int64_t k = 1; k <= blur.radius; ++k) {
      const int32_t *left = middle - 3 * k, *right = middle + 3 * k, tap = blur.taps[k];
      for (int64_t v = 0; v < kVectors; ++v) sum[v] += tap * (at<IntLanes>(left + v * kLanes) + at<IntLanes>(right + v * kLanes));
    }
    std::memcpy(out + j, sum, sizeof(sum));
  }
}

// Row y of the image from the ring. Doubles hold these integers, and their products and sums, exactly.
void blur_column(const int32_t* ring, const Blur& blur, int64_t y, uint8_t* out) {
  constexpr double kScale = 1.0 / (kTapSum * kTapSum), kRounds = int64_t{1} << 52;  // a sum with it is whole, half to even
  const int64_t stride = ring_columns(blur.width), slots = 2 * blur.radius + 1;
  for (int64_t j = 0; j < 3 * blur.width; j += kStep) {
    const auto row = [&](int64_t at) { return ring + reflected(at, blur.height - 1) % slots * stride + j; };
    const int32_t* middle = row(y);
    Wide sum[2 * kVectors];
    for (int64_t v = 0; v < 2 * kVectors; ++v) {
      sum[v] = static_cast<double>(blur.taps[0]) * __builtin_convertvector(at<IntHalf>(middle + v * kHalf), Wide);
    }
    for (int64_t k = 1; k <= blur.radius; ++k) {
      const int32_t *above = row(y - k), *below = row(y + k);
      const double tap = blur.taps[k];
      for (int64_t v = 0; v < 2 * kVectors; ++v) {
        const IntHalf pair = at<IntHalf>(above + v * kHalf) + at<IntHalf>(below + v * kHalf);
        sum[v] += tap * __builtin_convertvector(pair, Wide);
      }
    }
    double rounded[kStep];
    for (int64_t v = 0; v < 2 * kVectors; ++v) sum[v] = (sum[v] * kScale + kRounds) - kRounds;
    std::memcpy(rounded, sum, sizeof(sum));
    const int64_t n = 3 * blur.width - j < kStep ? 3 * blur.width - j : kStep;
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) out[j + i] = static_cast<uint8_t>(static_cast<int32_t>(rounded[i]));
  }
}

}  // namespace

void blur_image(const uint8_t* image, const Blur& blur, int32_t* space, uint8_t* out) {
  const int64_t stride = ring_columns(blur.width), slots = 2 * blur.radius + 1;
  int32_t *ring = space, *wide = space + slots * stride;
  for (int64_t row = 0; row < blur.height + blur.radius; ++row) {
    if (row < blur.height) {
      widen(image + row * 3 * blur.width, blur, wide);
      blur_row(wide, blur, ring + row % slots * stride);
    }
    const int64_t y = row - blur.radius;
    if (y >= 0) blur_column(ring, blur, y, out + y * 3 * blur.width);
  }
}

}  // namespace vifast::VIFAST_ISA
