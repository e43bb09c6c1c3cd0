#include "../resize.h"

#include <cstring>

#include "lanes-inl.h"

namespace vifast::VIFAST_ISA {

namespace {

constexpr int kBits = 22, kHalf = 1 << (kBits - 1);

inline uint32_t four_bytes(const uint8_t* from) {
  uint32_t v;
  std::memcpy(&v, from, sizeof(v));
  return v;
}

inline IntLanes load(const void* from) {
  IntLanes v;
  std::memcpy(&v, from, sizeof(v));
  return v;
}

inline IntLanes byte_of(IntLanes v, int c) { return (v >> (8 * c)) & 255; }

inline IntLanes clipped(IntLanes sum) {
  sum >>= kBits;
  sum = sum < 0 ? IntLanes{} : sum;
  return sum > 255 ? IntLanes{} + 255 : sum;
}

// Four bytes from each of kLanes places. As one list, of which GCC makes inserts; a loop goes through memory.
inline IntLanes gathered(const uint8_t* from, const int32_t* offset) {
  auto at = [&](int k) { return static_cast<int32_t>(four_bytes(from + offset[k])); };
#if defined(__AVX512F__)
  return IntLanes{at(0), at(1), at(2), at(3), at(4), at(5), at(6), at(7), at(8), at(9), at(10), at(11), at(12), at(13), at(14), at(15)};
#elif defined(__AVX2__)
  return IntLanes{at(0), at(1), at(2), at(3), at(4), at(5), at(6), at(7)};
#else
  return IntLanes{at(0), at(1), at(2), at(3)};
#endif
}

// kLanes pixels of 4 bytes to 3 each; 4 bytes more are written.
inline void store_pixels(uint8_t* to, IntLanes v) {
  typedef uint8_t Bytes __attribute__((vector_size(16)));
  const Bytes packed{0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, 15, 15, 15, 15};
  Bytes part[kLanes / 4];
  std::memcpy(part, &v, sizeof(v));
  for (int64_t k = 0; k < kLanes / 4; ++k) {
    part[k] = __builtin_shuffle(part[k], packed);
    std::memcpy(to + 12 * k, &part[k], 16);
  }
}

}  // namespace

void resize_rows(const uint8_t* rows, int64_t n, int64_t stride, Blocks blocks, uint8_t* out) {
  for (int64_t row = 0; row < n; ++row, rows += stride, out += 3 * blocks.out) {
    const int32_t* weight = blocks.weight;
    for (int64_t b = 0; b < blocks.n; weight += kBlock * blocks.taps[b++]) {
      for (int64_t part = 0; part < kBlock; part += kLanes) {
        IntLanes red = IntLanes{} + kHalf, green = red, blue = red;
        for (int32_t t = 0; t < blocks.taps[b]; ++t) {
          const IntLanes w = load(weight + kBlock * t + part), v = gathered(rows + 3 * t, blocks.offset + kBlock * b + part);
          red += w * byte_of(v, 0);
          green += w * byte_of(v, 1);
          blue += w * byte_of(v, 2);
        }
        store_pixels(out + 3 * (kBlock * b + part), clipped(red) | clipped(green) << 8 | clipped(blue) << 16);
      }
    }
  }
}

void resize_columns(const uint8_t* rows, int64_t width, Line line, uint8_t* out) {
  constexpr int64_t kBytes = 4 * kLanes;
  for (int64_t k = 0; k < line.out; ++k) {
    const uint8_t* from = rows + line.first[k] * width;
    const int32_t* weight = line.weight + k * line.most;
    uint8_t* to = out + k * width;
    for (int64_t done = 0; done < width && width >= kBytes; done += kBytes) {
      const int64_t x = done + kBytes <= width ? done : width - kBytes;  // the last bytes of a row are done with some before them
      IntLanes s0 = IntLanes{} + kHalf, s1 = s0, s2 = s0, s3 = s0;
      for (int32_t t = 0; t < line.count[k]; ++t) {
        const IntLanes v = load(from + t * width + x);
        s0 += weight[t] * byte_of(v, 0);
        s1 += weight[t] * byte_of(v, 1);
        s2 += weight[t] * byte_of(v, 2);
        s3 += weight[t] * byte_of(v, 3);
      }
      const IntLanes v = clipped(s0) | clipped(s1) << 8 | clipped(s2) << 16 | clipped(s3) << 24;
      std::memcpy(to + x, &v, sizeof(v));
    }
    for (int64_t x = 0; x < width && width < kBytes; ++x) {
      int32_t sum = kHalf;
      for (int32_t t = 0; t < line.count[k]; ++t) sum += weight[t] * from[t * width + x];
      sum >>= kBits;
      to[x] = static_cast<uint8_t>(sum < 0 ? 0 : sum > 255 ? 255 : sum);
    }
  }
}

}  // namespace vifast::VIFAST_ISA
