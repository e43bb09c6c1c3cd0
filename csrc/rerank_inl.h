// The arithmetic of k-reciprocal re-ranking, one copy for host and device: memberships, the rule of two thirds, Jaccard,
// and the rounding to half precision of the published numbers.
#pragma once
#include <cstdint>
#include <cstring>

#include "ranking_inl.h"

namespace vifast {

// x < 65520 rounded to float16, ties to even, as a float.
VIFAST_HD float round_half(float x) {
  const float size = x < 0 ? -x : x;
  float rounded;
  if (size < 0x1p-14f) {
    rounded = (size + 0.5f) - 0.5f;  // subnormal: a multiple of 2^-24, the spacing of floats at 1/2
  } else {
    uint32_t bits;
    memcpy(&bits, &size, sizeof(bits));
    bits = (bits + 0xfffu + ((bits >> 13) & 1u)) & ~0x1fffu;
    memcpy(&rounded, &bits, sizeof(bits));
  }
  return x < 0 ? -rounded : rounded;
}

// A result of half-precision arithmetic where `half`, else the float itself.
template <bool half>
VIFAST_HD float stored(float x) {
  return half ? round_half(x) : x;
}

VIFAST_HD bool is_member(const int32_t* list, int64_t n, int32_t x) {
  bool found = false;
  for (int64_t k = 0; k < n; ++k) found |= list[k] == x;
  return found;
}

// The members of row i's first n neighbours that have i among their own first n, nearest first; their number.
VIFAST_HD int32_t reciprocal_of(const int32_t* lists, int64_t length, int64_t n, int64_t i, int32_t* out) {
  int32_t count = 0;
  for (int64_t k = 0; k < n; ++k) {
    const int32_t j = lists[i * length + k];
    if (is_member(lists + j * length, n, static_cast<int32_t>(i))) out[count++] = j;
  }
  return count;
}

// More than two thirds of a set of n.
VIFAST_HD bool enough(int32_t shared, int32_t n) { return 3 * shared > 2 * n; }

// Whether a set shares that many of its members with `base`.
VIFAST_HD bool joins(const int32_t* set, int32_t n, const int32_t* base, int32_t base_n) {
  int32_t shared = 0;
  for (int32_t k = 0; k < n; ++k) shared += is_member(base, base_n, set[k]);
  return enough(shared, n);
}

// One more column of the two rows in the overlap of their weights.
template <bool half>
VIFAST_HD float overlap(float sum, float a, float b) {
  return stored<half>(sum + (a < b ? a : b));
}

struct Blend {  // weights of the two distances: 1 - lambda (rounded to half precision where that is asked for) and lambda
  float jaccard, original;
};

// The sum of two products, each rounded: a compiler that fused one of them into the sum would change the bits.
VIFAST_HD float sum_of_products(float a, float b, float c, float d) {
#if defined(__CUDA_ARCH__)
  return __fadd_rn(__fmul_rn(a, b), __fmul_rn(c, d));
#elif defined(__FP_FAST_FMAF)
  const volatile float left = a * b, right = c * d;
  return left + right;
#else
  return a * b + c * d;
#endif
}

// (1 - lambda) J + lambda O with J = 1 - t / (2 - t).
template <bool half>
VIFAST_HD float blended(float t, float original, Blend w) {
  const float j = stored<half>(1.0f - stored<half>(t / stored<half>(2.0f - t)));
  return half ? sum_of_products(stored<half>(w.jaccard * j), 1.0f, w.original, original)
              : sum_of_products(w.jaccard, j, w.original, original);
}

// A distance as a share of its row's largest; 0 in a row of zeros.
VIFAST_HD float share_of(float dist, float most) { return most > 0 ? dist / most : 0.0f; }

}  // namespace vifast
