// Included by *.simd.cpp only. Half-precision values without the instructions for them, in a form that compilers vectorise.
#pragma once
#include <cstdint>
#include <cstring>

namespace vifast::VIFAST_ISA {

static inline float float_of(uint32_t bits) {
  float v;
  std::memcpy(&v, &bits, sizeof(v));
  return v;
}

static inline uint32_t bits_of(float v) {
  uint32_t bits;
  std::memcpy(&bits, &v, sizeof(bits));
  return bits;
}

struct Single {
  using Stored = float;
  static float read(float v) { return v; }
  static float write(float v) { return v; }
};

struct BFloat16 {
  using Stored = uint16_t;
  static float read(uint16_t v) { return float_of(static_cast<uint32_t>(v) << 16); }
  static uint16_t write(float v) {
    const uint32_t bits = bits_of(v), even = bits + 0x7fffu + ((bits >> 16) & 1u);  // round to nearest even
    return static_cast<uint16_t>(v != v ? 0x7fc0u : even >> 16);
  }
};

struct Float16 {
  using Stored = uint16_t;
  static float read(uint16_t v) {
    const uint32_t magnitude = (v & 0x7fffu) << 13, sign = (v & 0x8000u) << 16;
    const uint32_t scaled = bits_of(float_of(magnitude) * 0x1p112f);  // moves the exponent, of subnormals as well
    return float_of(((v & 0x7c00u) == 0x7c00u ? scaled | 0x7f800000u : scaled) | sign);
  }
  static uint16_t write(float v) {
    const uint32_t bits = bits_of(v), sign = (bits >> 16) & 0x8000u, magnitude = bits & 0x7fffffffu;
    const uint32_t normal = (magnitude - (112u << 23) + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
    const uint32_t subnormal = bits_of(float_of(magnitude) + 0.5f) - 0x3f000000u;  // the last bit of 0.5 is float16's least step
    const uint32_t finite = magnitude < 0x38800000u ? subnormal : normal;
    const uint32_t wide = magnitude >= 0x477ff000u ? 0x7c00u : finite;
    return static_cast<uint16_t>((magnitude > 0x7f800000u ? 0x7e00u : wide) | sign);
  }
};

}  // namespace vifast::VIFAST_ISA
