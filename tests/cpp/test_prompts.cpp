// Prompts: cells of images and what is dropped of them, their planes normalised and gated.
#include <algorithm>

#include "cells.h"
#include "check.h"
#include "philox.h"
#include "prompt_mixture.h"
#include "weighted_sums.h"

namespace vifast {
namespace {

std::vector<float> counted(int64_t n, float first = 1, float step = 1) {
  std::vector<float> out(n);
  for (int64_t k = 0; k < n; ++k) out[k] = first + step * k;
  return out;
}

TEST(cells_are_gathered_and_put_back) {
  each_isa([] {
    for (int64_t side : {1, 3, 16}) {
      const CellGrid grid{2, 2 * side, 3 * side, side};
      const std::vector<float> image = counted(grid.cells() * grid.size());
      std::vector<float> rows(image.size()), twice(image.size()), back(image.size()), sum(image.size());
      VIFAST_DISPATCH(gather_cells, grid, image.data(), nullptr, 0, grid.cells(), rows.data());
      VIFAST_DISPATCH(gather_cells, grid, image.data(), image.data(), 0, grid.cells(), twice.data());
      VIFAST_DISPATCH(scatter_cells, grid, rows.data(), 0, grid.cells(), back.data(), image.data(), sum.data());
      CHECK(back == image);
      // The last cell, second channel, first row: its pixel below and to the right of four others.
      const int64_t at = 5 * grid.size() + side * side;
      CHECK(rows[at] == image[(2 * side + side) * 3 * side + 2 * side]);
      for (size_t k = 0; k < rows.size(); ++k) CHECK(twice[k] == 2 * rows[k] && sum[k] == 2 * image[k]);
    }
  });
}

TEST(what_is_dropped_is_a_function_of_seed_cell_and_pixel) {
  each_isa([] {
    const int64_t d = 27, quarter = 7, cell = (int64_t{1} << 33) + 5;
    const CellDropout drop{true, 0x12345678, 0x9abcdef0, 16384, 4.0f / 3};
    const std::vector<float> a = counted(2 * d), b = counted(2 * d, 100), bias_a = counted(d, 0.5f), bias_b = counted(d, 0.25f);
    std::vector<uint32_t> words(d + 4);
    std::vector<float> rows(2 * d), to_a(2 * d), to_b(2 * d), sum_a(d), sum_b(d);
    VIFAST_DISPATCH(drop_cells, drop, cell, 2, d, a.data(), bias_a.data(), b.data(), bias_b.data(), words.data(), rows.data());
    VIFAST_DISPATCH(drop_cells_backward, drop, cell, 2, d, a.data(), words.data(), to_a.data(), to_b.data(), sum_a.data(), sum_b.data());
    for (int64_t k = 0; k < 2 * d; ++k) {
      const uint64_t n = cell + k / d;
      const uint32_t i = k % d % quarter;
      const uint32_t word = philox({{i, static_cast<uint32_t>(n), static_cast<uint32_t>(n >> 32), 0}}, drop.seed_low, drop.seed_high)
                                .w[k % d / quarter];
      const float keep_a = (word & 0xffff) >= drop.dropped ? drop.scale : 0, keep_b = (word >> 16) >= drop.dropped ? drop.scale : 0;
      CHECK(near(rows[k], keep_a * (a[k] + bias_a[k % d]) + keep_b * (b[k] + bias_b[k % d])));
      CHECK(near(to_a[k], keep_a * a[k]) && near(to_b[k], keep_b * a[k]));
    }
    for (int64_t k = 0; k < d; ++k) CHECK(near(sum_a[k], to_a[k] + to_a[d + k]) && near(sum_b[k], to_b[k] + to_b[d + k]));
  });
}

TEST(few_columns_are_summed_as_many_and_from_a_panel_in_place) {
  each_isa([] {
    const int64_t n = 5, m = 600;
    const std::vector<float> w = counted(n * m, -1, 0.001f);
    std::vector<float> panel(m * kSumsWidth, NAN), scratch(kSumsDepth * kSumsWidth + 16);
    for (int64_t cols : {1, 9, 24, 40}) {
      std::vector<float> x(m * cols), copied(n * cols), read(n * cols);
      for (int64_t k = 0; k < m * cols; ++k) panel[k / cols * kSumsWidth + k % cols] = x[k] = static_cast<float>(k % 17) - 8;
      float* aligned = scratch.data() + (64 - reinterpret_cast<uintptr_t>(scratch.data()) % 64) / 4 % 16;
      const Weights weights{w.data(), m, 1};
      VIFAST_DISPATCH(weighted_sums, weights, n, x.data(), m, cols, 0, cols, false, copied.data(), cols, aligned);
      VIFAST_DISPATCH(weighted_sums, weights, n, panel.data(), m, kSumsWidth, 0, cols, false, read.data(), cols, nullptr);
      CHECK(copied == read);
      for (int64_t k = 0; k < n * cols; ++k) {
        double sum = 0;
        for (int64_t j = 0; j < m; ++j) sum += static_cast<double>(w[k / cols * m + j]) * x[j * cols + k % cols];
        CHECK(near(read[k], sum, 1e-4, 1e-3));
      }
    }
  });
}

TEST(planes_are_normalised_and_gated) {
  each_isa([] {
    for (int64_t positions : {2, 19, 40}) {
      const std::vector<float> hidden = counted(3 * positions, -1, 0.05f), mean = {0.1f, 0.2f, 0.3f}, rstd = {2, 1, 0.5f};
      const std::vector<float> weight = {1, 2, 3}, bias = {0, 0.5f, -0.5f}, gates = {0.3f, -0.2f, 0.1f, 0.4f};
      const PromptPlanes in{hidden.data(), mean.data(), rstd.data(), weight.data(), bias.data(), 1, 2, 2, positions,
                            gates.data(), gates.data(), gates.data(), gates.data()};
      std::vector<float> memory(prompt_scratch(in) + 16), out(3 * positions), to(3 * positions), sums(6), to_gates(16);
      float* scratch = memory.data() + (64 - reinterpret_cast<uintptr_t>(memory.data()) % 64) / 4 % 16;
      VIFAST_DISPATCH(prompt_mixture_forward, in, out.data(), scratch);
      const auto gate = [&](const double (&v)[2], int64_t c) {
        const double z[] = {std::max(0.0, 0.3f * v[0] - 0.2f * v[1]), std::max(0.0, 0.1f * v[0] + 0.4f * v[1])};
        return 1 / (1 + std::exp(-(gates[2 * c] * z[0] + gates[2 * c + 1] * z[1])));
      };
      for (int64_t i = 0; i < positions; ++i) {
        CHECK(near(out[i], (hidden[i] - mean[0]) * rstd[0]));
        double h[2], u[2];
        for (int64_t c = 0; c < 2; ++c) {
          h[c] = hidden[(1 + c) * positions + i];
          u[c] = (h[c] - mean[1 + c]) * rstd[1 + c] * weight[1 + c] + bias[1 + c];
        }
        for (int64_t c = 0; c < 2; ++c) {
          const double a = gate(h, c);
          CHECK(near(out[(1 + c) * positions + i], a * h[c] + (1 - a) * gate(u, c) * u[c]));
        }
      }
      VIFAST_DISPATCH(prompt_mixture_backward, in, true, hidden.data(), to.data(), sums.data(), to_gates.data(), scratch);
      const float means[] = {sums[0] / positions, sums[1] / positions};
      VIFAST_DISPATCH(prompt_mixture_batch, in, means, hidden.data(), to.data());
      for (float value : to) CHECK(std::isfinite(value));
      for (float value : to_gates) CHECK(std::isfinite(value));
    }
  });
}

}  // namespace
}  // namespace vifast
