// Included by *.simd.cpp only. One vector register as a type (an extension of GCC and Clang), for loops over planes: a plane's last
// few positions are one more register, partly filled, where an auto-vectorised loop does them one by one.
#pragma once
#include <cstdint>
#include <cstring>

#include "exp-inl.h"

namespace vifast::VIFAST_ISA {

#if defined(__AVX512F__)
constexpr int64_t kLanes = 16;
#elif defined(__AVX2__)
constexpr int64_t kLanes = 8;
#else
constexpr int64_t kLanes = 4;
#endif
typedef float Lanes __attribute__((vector_size(4 * kLanes)));
typedef int32_t IntLanes __attribute__((vector_size(4 * kLanes)));

static inline Lanes all(float v) { return Lanes{} + v; }

static inline Lanes load(const float* from, int64_t n) {
  Lanes v{};
  if (n >= kLanes) {
    std::memcpy(&v, from, sizeof(v));
  } else {
    for (int64_t k = 0; k < n; ++k) v[k] = from[k];
  }
  return v;
}

static inline void store(float* to, Lanes v, int64_t n) {
  if (n >= kLanes) {
    std::memcpy(to, &v, sizeof(v));
  } else {
    for (int64_t k = 0; k < n; ++k) to[k] = v[k];
  }
}

// v in the first n lanes, 0 in the others.
static inline Lanes first(Lanes v, int64_t n) {
  if (n >= kLanes) return v;
  IntLanes lane;
  for (int64_t k = 0; k < kLanes; ++k) lane[k] = static_cast<int32_t>(k);
  return lane < static_cast<int32_t>(n) ? v : Lanes{};
}

// By halves. Written out: as loops over elements GCC does it in memory, element by element.
static inline float sum(Lanes v) {
  typedef float Four __attribute__((vector_size(16)));
  Four part[kLanes / 4];
  std::memcpy(part, &v, sizeof(v));
  if constexpr (kLanes == 16) {
    part[0] += part[2];
    part[1] += part[3];
  }
  if constexpr (kLanes >= 8) part[0] += part[1];
  return (part[0][0] + part[0][2]) + (part[0][1] + part[0][3]);
}

// max(v, low); a NaN stays.
static inline Lanes at_least(Lanes v, float low) { return v < low ? all(low) : v; }
static inline Lanes at_most(Lanes v, float high) { return v > high ? all(high) : v; }

// e^x for |x| < 87.
static inline Lanes exp_lanes(Lanes x) {
  Lanes n;
  const Lanes p = exp_parts(x, n);
  const IntLanes bits = (__builtin_convertvector(n, IntLanes) + 127) << 23;
  Lanes scale;
  std::memcpy(&scale, &bits, sizeof(scale));
  return p * scale;
}

// Cube root of v > 0: a guess from a third of the exponent, three of Newton's steps. Infinity and NaN stay.
static inline Lanes cube_root(Lanes v) {
  IntLanes bits;
  std::memcpy(&bits, &v, sizeof(bits));
  bits = bits / 3 + 709921077;
  Lanes root;
  std::memcpy(&root, &bits, sizeof(root));
  for (int step = 0; step < 3; ++step) root = (root + root + v / (root * root)) * (1.0f / 3.0f);
  return v - v == 0.0f ? root : v;
}

}  // namespace vifast::VIFAST_ISA
