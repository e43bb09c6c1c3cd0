// Ops on feature maps: planes in every layout and type, pools, purifier, prompts.
#include <algorithm>
#include <cstring>

#include "check.h"
#include "gem_pool.h"
#include "parallel.h"
#include "planes.h"
#include "prompt_consistency.h"
#include "purifier.h"

namespace vifast {
namespace {

std::vector<float> normal(int64_t n, unsigned seed, float low = -4) {
  std::mt19937 random(seed);
  std::normal_distribution<float> draw;
  std::vector<float> out(n);
  for (float& v : out) v = std::max(low, draw(random));
  return out;
}

double gem_of(const float* x, int64_t positions, Gem gem) {
  double sum = 0;
  for (int64_t i = 0; i < positions; ++i) sum += std::pow(gem.clamp ? std::max<double>(x[i], gem.eps) : x[i], gem.p);
  return std::pow(sum / positions + (gem.clamp ? 0.0 : gem.eps), 1.0 / gem.p);
}

TEST(planes_of_every_layout_and_type) {
  const int64_t images = 2, channels = 19, positions = 7;
  each_isa([&] {
    for (Float kind : {Float::f32, Float::f16, Float::bf16}) {
      for (bool last : {false, true}) {
        // Whole numbers up to 127 are the same in every type.
        std::vector<float> wide(images * channels * positions);
        std::vector<uint16_t> half(wide.size());
        Map map{kind == Float::f32 ? static_cast<void*>(wide.data()) : half.data(), kind, images, channels, positions, last};
        for (int64_t image = 0; image < images; ++image) {
          for (int64_t channel = 0; channel < channels; channel += kPlanes) {
            const int64_t n = std::min(kPlanes, channels - channel);
            std::vector<float> block(n * positions);
            for (int64_t k = 0; k < n; ++k) {
              const int64_t plane = image * 60 + channel + k;
              for (int64_t i = 0; i < positions; ++i) block[k * positions + i] = static_cast<float>(plane - 3 * i);
            }
            VIFAST_DISPATCH(store_planes, map, image, channel, n, block.data());
            std::vector<float> back(n * positions);
            VIFAST_DISPATCH(load_planes, map, image, channel, n, back.data());
            CHECK(block == back);
          }
        }
        if (kind == Float::f32) {
          for (int64_t c = 0; c < channels; ++c) {
            const int64_t at = last ? 2 * channels + c : c * positions + 2;
            CHECK(wide[at] == c - 6);
            CHECK(wide[channels * positions + at] == 60 + c - 6);
          }
        }
      }
    }
  });
}

TEST(halves_round_to_nearest_even) {
  each_isa([] {
    const float ulp = 0x1p-10f;  // of float16 at 1; the last value is half of bfloat16's
    const std::vector<float> values = {1 + ulp / 2, 1 + 3 * ulp / 2, 65520, 0x1p-25f, -0x1p-24f, INFINITY, NAN, 1 + 4 * ulp};
    std::vector<uint16_t> half(values.size());
    Map map{half.data(), Float::f16, 1, 1, static_cast<int64_t>(values.size()), false};
    VIFAST_DISPATCH(store_planes, map, 0, 0, 1, values.data());
    const std::vector<uint16_t> wanted = {0x3c00, 0x3c02, 0x7c00, 0, 0x8001, 0x7c00};
    CHECK(std::equal(wanted.begin(), wanted.end(), half.begin()));
    CHECK((half[6] & 0x7fff) > 0x7c00);
    std::vector<float> back(values.size());
    VIFAST_DISPATCH(load_planes, map, 0, 0, 1, back.data());
    CHECK(back[4] == -0x1p-24f && back[5] == INFINITY && std::isnan(back[6]));
    map.kind = Float::bf16;
    VIFAST_DISPATCH(store_planes, map, 0, 0, 1, values.data());
    CHECK(half[7] == 0x3f80 && (half[6] & 0x7fff) > 0x7f80);
  });
}

TEST(statistics_of_planes) {
  each_isa([] {
    for (int64_t positions : {1, 5, 16, 33, 216}) {
      std::vector<float> x = normal(3 * positions, 1);
      for (float& v : x) v += 100;
      std::vector<float> mean(3), var(3);
      VIFAST_DISPATCH(plane_stats, x.data(), 3, positions, mean.data(), var.data());
      for (int64_t k = 0; k < 3; ++k) {
        double sum = 0, square = 0;
        for (int64_t i = 0; i < positions; ++i) sum += x[k * positions + i];
        for (int64_t i = 0; i < positions; ++i) square += std::pow(x[k * positions + i] - sum / positions, 2);
        CHECK(near(mean[k], sum / positions));
        CHECK(near(var[k], square / positions, 1e-4));
      }
    }
  });
}

TEST(gem_pools_and_their_slopes) {
  each_isa([] {
    for (int64_t positions : {1, 9, 16, 35}) {
      for (Gem gem : {Gem{3, 1e-6f, true}, Gem{2.5f, 1e-6f, true}, Gem{3, 1e-12f, false}, Gem{1, 1e-6f, true}}) {
        const int64_t n = 18;
        std::vector<float> x = normal(n * positions, 3, gem.clamp ? -4 : 0.05f), out(n), to_x(x.size()), to_p(n);
        VIFAST_DISPATCH(gem_forward, x.data(), n, positions, gem, out.data());
        const std::vector<float> grad = normal(n, 4);
        VIFAST_DISPATCH(gem_backward, x.data(), n, positions, gem, grad.data(), out.data(), to_x.data(), to_p.data());
        for (int64_t k = 0; k < n; ++k) {
          const float* plane = x.data() + k * positions;
          const double value = gem_of(plane, positions, gem);
          CHECK(near(out[k], value));
          for (int64_t i = 0; i < positions; ++i) {
            const bool open = !gem.clamp || plane[i] >= gem.eps;
            const double slope = open ? std::pow(plane[i] / value, gem.p - 1) / positions : 0;
            CHECK(near(to_x[k * positions + i], grad[k] * slope, 1e-4));
          }
          const Gem more{gem.p + 1e-3f, gem.eps, gem.clamp}, less{gem.p - 1e-3f, gem.eps, gem.clamp};
          const double width = static_cast<double>(more.p) - less.p;
          const double slope = (gem_of(plane, positions, more) - gem_of(plane, positions, less)) / width;
          CHECK(near(to_p[k], grad[k] * slope, 1e-3, 1e-4));
        }
        std::vector<float> again(x.size());
        VIFAST_DISPATCH(gem_backward, x.data(), n, positions, gem, grad.data(), out.data(), again.data(), nullptr);
        CHECK(again == to_x);
      }
    }
  });
}

struct Purifier {
  int64_t n, positions;
  std::vector<float> x, gate_u, gate_x, mean, rstd, weight, bias;
  Purifier(int64_t n, int64_t positions)
      : n(n), positions(positions), x(normal(n * positions, 5)), gate_u(normal(n * positions, 6)),
        gate_x(normal(n * positions, 7)), mean(n), rstd(n), weight(normal(n, 8, 0.2f)), bias(normal(n, 9)) {
    VIFAST_DISPATCH(plane_stats, x.data(), n, positions, mean.data(), rstd.data());
    for (float& v : rstd) v = 1 / std::sqrt(v + 1e-5f);
  }
  PurifierPlanes planes() const {
    return {x.data(), gate_u.data(), gate_x.data(), mean.data(), rstd.data(), weight.data(), bias.data(), n, positions};
  }
  // The five pooled values of plane k in double, with the statistics given or those of x.
  std::vector<double> pooled(int64_t k, bool own) const {
    double m = mean[k], r = rstd[k];
    const float* at = x.data() + k * positions;
    if (own) {
      m = 0;
      double square = 0;
      for (int64_t i = 0; i < positions; ++i) m += at[i] / static_cast<double>(positions);
      for (int64_t i = 0; i < positions; ++i) square += std::pow(at[i] - m, 2) / positions;
      r = 1 / std::sqrt(square + 1e-5);
    }
    std::vector<double> sums(5);
    for (int64_t i = 0; i < positions; ++i) {
      const double v = at[i], u = (v - m) * r * weight[k] + bias[k];
      const double s = 1 / (1 + std::exp(-gate_u[k * positions + i])), t = 1 / (1 + std::exp(-gate_x[k * positions + i]));
      const double maps[] = {s * t * (v + u), v, t * v, u, s * u};
      for (int j = 0; j < 5; ++j) sums[j] += std::pow(std::max<double>(maps[j], kPurifierEps), 3) / positions;
    }
    for (double& sum : sums) sum = std::cbrt(sum);
    return sums;
  }
};

TEST(purifier_against_differences) {
  each_isa([] {
    for (int64_t positions : {3, 16, 35}) {
      const int64_t n = 17;
      Purifier in(n, positions);
      std::vector<float> pooled(5 * n);
      VIFAST_DISPATCH(purifier_forward, in.planes(), pooled.data(), n);
      for (int64_t k = 0; k < n; ++k) {
        const std::vector<double> wanted = in.pooled(k, false);
        for (int v = 0; v < 5; ++v) CHECK(near(pooled[v * n + k], wanted[v], 1e-4));
      }
      const std::vector<float> grad = normal(5 * n, 11);
      for (bool instance : {false, true}) {
        std::vector<float> to_x(n * positions), to_u(n * positions), to_g(n * positions), sums(2 * n), step(positions);
        VIFAST_DISPATCH(purifier_backward, in.planes(), instance, grad.data(), pooled.data(), n, to_x.data(), to_u.data(),
                        to_g.data(), sums.data(), step.data());
        auto slope = [&](std::vector<float>& map, int64_t at) {
          const int64_t k = at / positions;
          const float kept = map[at];
          double total = 0, width = 0;
          for (float side : {1.0f, -1.0f}) {
            map[at] = kept + side * 1e-3f;
            width += side * map[at];
            const std::vector<double> values = in.pooled(k, instance);
            for (int v = 0; v < 5; ++v) total += side * grad[v * n + k] * values[v];
          }
          map[at] = kept;
          return total / width;
        };
        for (int64_t k = 0; k < n; k += 5) {
          const int64_t at = k * positions + k % positions;
          CHECK(near(to_x[at], slope(in.x, at), 1e-2, 1e-3));
          CHECK(near(to_u[at], slope(in.gate_u, at), 1e-2, 1e-3));
          CHECK(near(to_g[at], slope(in.gate_x, at), 1e-2, 1e-3));
        }
      }
    }
  });
}

TEST(prompts_and_their_signs) {
  each_isa([] {
    for (int64_t n : {0, 1, 16, 4099, 9000}) {
      const std::vector<float> a = normal(n, 12);
      std::vector<float> b = normal(n, 13), out(n);
      if (n > 2) b[1] = a[1];
      double total = -1, wanted = 0;
      VIFAST_DISPATCH(absolute_difference, a.data(), b.data(), n, &total);
      for (int64_t i = 0; i < n; ++i) wanted += std::fabs(static_cast<double>(a[i]) - b[i]);
      CHECK(near(total, wanted));
      VIFAST_DISPATCH(difference_sign, a.data(), b.data(), n, 0.5f, out.data());
      for (int64_t i = 0; i < n; ++i) CHECK(out[i] == (a[i] > b[i] ? 0.5f : a[i] < b[i] ? -0.5f : 0.0f));
    }
    const float bad[] = {NAN, 1.0f}, old[] = {0.0f, NAN};
    float out[2];
    VIFAST_DISPATCH(difference_sign, bad, old, 2, 1.0f, out);
    CHECK(out[0] == 0 && out[1] == 0);
  });
}

TEST(planes_in_parallel_are_those_in_order) {
  const int64_t n = 96, positions = 40;
  const std::vector<float> x = normal(n * positions, 14);
  const Gem gem{3, 1e-6f, true};
  std::vector<float> one(n), many(n);
  VIFAST_DISPATCH(gem_forward, x.data(), n, positions, gem, one.data());
  parallel_for(n / kPlanes, 1, 4, [&](int64_t b0, int64_t b1) {
    for (int64_t k = b0 * kPlanes; k < b1 * kPlanes; k += kPlanes) {
      VIFAST_DISPATCH(gem_forward, x.data() + k * positions, kPlanes, positions, gem, many.data() + k);
    }
  });
  CHECK(one == many);
}

}  // namespace
}  // namespace vifast
