// Philox4x32-10, the counter-based generator of Salmon et al. 2011, and the numbers that augmentation makes of its words.
// vifast/data/draws.py says what key and counter are.
#pragma once
#include <cstdint>

namespace vifast {

struct Words {
  uint32_t w[4];
};

// Inlined always, into loops that are compiled once per instruction set (csrc/isa.h).
[[gnu::always_inline]] constexpr Words philox(Words c, uint32_t k0, uint32_t k1) {
  for (int turn = 0; turn < 10; ++turn, k0 += 0x9E3779B9u, k1 += 0xBB67AE85u) {
    const uint64_t low = uint64_t{0xD2511F53u} * c.w[0], high = uint64_t{0xCD9E8D57u} * c.w[2];
    c = {{static_cast<uint32_t>(high >> 32) ^ c.w[1] ^ k0, static_cast<uint32_t>(high), static_cast<uint32_t>(low >> 32) ^ c.w[3] ^ k1,
          static_cast<uint32_t>(low)}};
  }
  return c;
}

// What is drawn for one sample.
struct Draws {
  uint32_t seed, epoch, view;
  uint64_t index;

  constexpr Words at(uint32_t slot, uint32_t attempt = 0) const {
    return philox({{static_cast<uint32_t>(index), static_cast<uint32_t>(index >> 32), slot + 65536 * view, attempt}}, seed, epoch);
  }
};

// Uniform in [0, 1), a multiple of 2^-24.
constexpr double unit(uint32_t word) { return (word >> 8) * 0x1p-24; }

// Uniform in [low, high). The product is exact, so that fusing it to the sum changes nothing.
constexpr double between(uint32_t word, double low, double high) {
  return static_cast<float>(low) + static_cast<double>(static_cast<float>(high - low)) * unit(word);
}

// Uniform in 0..n-1, n <= 2^31.
constexpr int32_t below(uint32_t word, int64_t n) { return static_cast<int32_t>((word * static_cast<uint64_t>(n)) >> 32); }

}  // namespace vifast
