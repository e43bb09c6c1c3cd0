#include <cmath>

#include "../huge_pages.h"
#include "bind.h"
#include "prompts.h"

namespace vifast {

namespace {

constexpr double kChances = 65536;  // of 16 bits

CellDropout dropout_of(const py::object& seed, double p) {
  if (seed.is_none()) return {false, 0, 0, 0, 1.0f};
  const auto key = static_cast<uint64_t>(*TensorView(seed, "seed").data<int64_t>({}));
  const double dropped = std::nearbyint(p * kChances);
  return {true, static_cast<uint32_t>(key), static_cast<uint32_t>(key >> 32), static_cast<uint32_t>(dropped),
          static_cast<float>(kChances / std::max(kChances - dropped, 1.0))};
}

// The bias's row of the specific part, or null without one, and of the common part.
struct PromptBias {
  const PromptSizes& of;
  const float* rows;
  int64_t parts() const { return (of.specific > 0 ? 2 : 0) + (of.common > 0 ? 1 : 0); }
  const float* specific(int64_t modality) const { return of.specific > 0 ? rows + modality * of.grid.size() : nullptr; }
  const float* common() const { return of.common > 0 ? rows + (parts() - 1) * of.grid.size() : nullptr; }
};

// Common planes of a sample from cell g on, at least 0, to [S', n].
void positive_planes(const PromptSizes& of, const float* values, int64_t g, int64_t n, float* out) {
  for (int64_t c = 0; c < of.common; ++c) {
    const float* plane = values + (of.specific + c) * of.grid.cells() + g;
    for (int64_t k = 0; k < n; ++k) out[c * n + k] = plane[k] < 0 ? 0.0f : plane[k];
  }
}

// images, prompted, prompt [B, C, H, W]; values [B, R, G]; weight [D, P], bias [parts, D]; seed [] or None.
void prompt_insertion(py::object images, py::object values, py::object modality, py::object weight, py::object bias, py::object seed,
                      double p, int64_t side, py::object prompted, py::object prompt, int threads) {
  const TensorView vi(images, "images"), vw(weight, "weight"), vv(values, "values");
  const float *px = vi.data<float>({-1, -1, -1, -1}), *pw = vw.data<float>({-1, -1}), *pv = vv.data<float>({-1, -1, -1});
  const PromptSizes of = prompt_sizes(vi, modality, vw.size(1), vw.size(1) - vv.size(1), side);
  const int64_t d = of.grid.size(), cells = of.grid.cells(), columns = of.columns(), packed = of.packed();
  vw.data<float>({d, packed});
  vv.data<float>({of.samples, columns, cells});
  PromptBias rows{of, nullptr};
  rows.rows = TensorView(bias, "bias").data<float>({rows.parts(), d});
  const auto sizes = {of.samples, of.grid.channels, of.grid.height, of.grid.width};
  float *to_sum = TensorView(prompted, "prompted").data<float>(sizes), *to = TensorView(prompt, "prompt").data<float>(sizes);
  const CellDropout drop = dropout_of(seed, p);
  py::gil_scoped_release release;
  prefer_huge_pages(to_sum, of.samples * of.pixels() * 4);
  prefer_huge_pages(to, of.samples * of.pixels() * 4);
  std::vector<float> maps(packed * d);  // [P, D]
  for (int64_t k = 0; k < d; ++k) {
    for (int64_t q = 0; q < packed; ++q) maps[q * d + k] = pw[k * packed + q];
  }
  parallel_for(of.samples, 1, threads, [&](int64_t b0, int64_t b1) {
    CellBuffer buffer(of, 2);
    std::vector<uint32_t> words(d + 4);
    float *own = buffer.rows.get(), *common = own + kCells * d;
    for (int64_t b = b0; b < b1; ++b) {
      const int64_t m = of.infrared(b), at = b * of.pixels();
      const float* planes = pv + b * columns * cells;
      each_cells(of.grid, [&](int64_t g, int64_t n) {
        positive_planes(of, planes, g, n, buffer.columns.get());
        if (of.specific > 0) buffer.products({planes + g, 1, cells}, n, &maps[m * of.specific * d], of.specific, d, d, own);
        if (of.common > 0) buffer.products({buffer.columns.get(), 1, n}, n, &maps[2 * of.specific * d], of.common, d, d, common);
        VIFAST_DISPATCH(drop_cells, drop, b * cells + g, n, d, of.specific > 0 ? own : nullptr, rows.specific(m),
                        of.common > 0 ? common : nullptr, rows.common(), words.data(), own);
        VIFAST_DISPATCH(scatter_cells, of.grid, own, g, n, to + at, px + at, to_sum + at);
      });
    }
  });
}

// to_prompted, to_prompt: [B, C, H, W], either may be None; to_values as values, to_weight as weight, to_bias as bias.
void prompt_insertion_backward(py::object to_prompted, py::object to_prompt, py::object values, py::object modality, py::object weight,
                               py::object seed, double p, int64_t side, py::object to_values, py::object to_weight, py::object to_bias,
                               int threads) {
  const bool both = !to_prompted.is_none() && !to_prompt.is_none();
  const TensorView vg(to_prompted.is_none() ? to_prompt : to_prompted, "grad"), vw(weight, "weight"), vv(values, "values");
  const float *pg = vg.data<float>({-1, -1, -1, -1}), *pw = vw.data<float>({-1, -1}), *pv = vv.data<float>({-1, -1, -1});
  const PromptSizes of = prompt_sizes(vg, modality, vw.size(1), vw.size(1) - vv.size(1), side);
  const int64_t d = of.grid.size(), cells = of.grid.cells(), columns = of.columns(), packed = of.packed(), specific = of.specific;
  const auto sizes = {of.samples, of.grid.channels, of.grid.height, of.grid.width};
  const float* second = both ? TensorView(to_prompt, "to_prompt").data<float>(sizes) : nullptr;
  vw.data<float>({d, packed});
  vv.data<float>({of.samples, columns, cells});
  float* out = TensorView(to_values, "to_values").data<float>({of.samples, columns, cells});
  float* out_weight = TensorView(to_weight, "to_weight").data<float>({d, packed});
  const int64_t parts = PromptBias{of, nullptr}.parts();
  float* out_bias = TensorView(to_bias, "to_bias").data<float>({parts, d});
  const CellDropout drop = dropout_of(seed, p);
  py::gil_scoped_release release;
  const int64_t sums = (packed + 3) * d;  // of a group of samples: [P, D] of the weight, then [3, D] of the bias
  std::vector<float> partial(kSampleGroups * sums);
  const int64_t stride = panel_stride(columns);
  std::vector<float> maps(3 * d * stride);  // [D, columns] of visible, infrared, and the common ones
  for (int64_t k = 0; k < d; ++k) {
    for (int64_t m = 0; m < 2; ++m) std::copy_n(pw + k * packed + m * specific, specific, &maps[(m * d + k) * stride]);
    std::copy_n(pw + k * packed + 2 * specific, of.common, &maps[(2 * d + k) * stride]);
  }
  parallel_for(kSampleGroups, 1, threads, [&](int64_t t0, int64_t t1) {
    CellBuffer buffer(of, 2);
    std::vector<uint32_t> words(d + 4);
    float *own = buffer.rows.get(), *common = own + kCells * d;
    for (int64_t t = t0; t < t1; ++t) {
      float *to = &partial[t * sums], *to_rows = to + packed * d;
      for (int64_t b = first_sample(t, of.samples); b < first_sample(t + 1, of.samples); ++b) {
        const int64_t m = of.infrared(b), at = b * of.pixels();
        const float* planes = pv + b * columns * cells;
        float* to_planes = out + b * columns * cells;
        each_cells(of.grid, [&](int64_t g, int64_t n) {
          VIFAST_DISPATCH(gather_cells, of.grid, pg + at, second == nullptr ? nullptr : second + at, g, n, common);
          VIFAST_DISPATCH(drop_cells_backward, drop, b * cells + g, n, d, common, words.data(), own, common, to_rows + m * d, to_rows + 2 * d);
          float* narrow = buffer.columns.get();
          if (specific > 0) {
            buffer.products({planes + g, cells, 1}, specific, own, n, d, d, to + m * specific * d, true);
            buffer.products({own, d, 1}, n, &maps[m * d * stride], d, stride, specific, narrow);
            for (int64_t r = 0; r < specific; ++r) {
              for (int64_t k = 0; k < n; ++k) to_planes[r * cells + g + k] = narrow[k * specific + r];
            }
          }
          if (of.common == 0) return;
          positive_planes(of, planes, g, n, narrow);
          buffer.products({narrow, n, 1}, of.common, common, n, d, d, to + 2 * specific * d, true);
          buffer.products({common, d, 1}, n, &maps[2 * d * stride], d, stride, of.common, narrow);
          for (int64_t r = 0; r < of.common; ++r) {
            const int64_t plane = (specific + r) * cells + g;
            for (int64_t k = 0; k < n; ++k) to_planes[plane + k] = planes[plane + k] > 0 ? narrow[k * of.common + r] : 0.0f;
          }
        });
      }
    }
  });
  std::fill_n(out_weight, d * packed, 0.0f);
  std::fill_n(out_bias, parts * d, 0.0f);
  for (int64_t t = 0; t < kSampleGroups; ++t) {
    const float* from = &partial[t * sums];
    for (int64_t k = 0; k < d; ++k) {
      for (int64_t q = 0; q < packed; ++q) out_weight[k * packed + q] += from[q * d + k];
    }
    const float* bias = from + packed * d + (specific > 0 ? 0 : 2 * d);
    for (int64_t k = 0; k < parts * d; ++k) out_bias[k] += bias[k];
  }
}

}  // namespace

void bind_prompt_insertion(py::module_& m) {
  m.def("prompt_insertion", &prompt_insertion, py::arg("images"), py::arg("values"), py::arg("modality"), py::arg("weight"),
        py::arg("bias"), py::arg("seed"), py::arg("p"), py::arg("side"), py::arg("prompted"), py::arg("prompt"), py::arg("threads"),
        "Second linear maps, dropped out and added to the images, see csrc/cells.h.");
  m.def("prompt_insertion_backward", &prompt_insertion_backward, py::arg("to_prompted"), py::arg("to_prompt"), py::arg("values"),
        py::arg("modality"), py::arg("weight"), py::arg("seed"), py::arg("p"), py::arg("side"), py::arg("to_values"), py::arg("to_weight"),
        py::arg("to_bias"), py::arg("threads"), "Its gradients.");
}

}  // namespace vifast
