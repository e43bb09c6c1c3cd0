#include "bind.h"
#include "prompts.h"

namespace vifast {

namespace {

// images [B, C, H, W], weight [P, D], bias [P]; hidden [B, R, G].
void prompt_hidden(py::object images, py::object modality, py::object weight, py::object bias, int64_t specific, int64_t side,
                   py::object hidden, int threads) {
  const TensorView vi(images, "images"), vw(weight, "weight");
  const float *px = vi.data<float>({-1, -1, -1, -1}), *pw = vw.data<float>({-1, -1});
  const PromptSizes of = prompt_sizes(vi, modality, vw.size(0), specific, side);
  const int64_t d = of.grid.size(), cells = of.grid.cells(), columns = of.columns();
  vw.data<float>({of.packed(), d});
  const float* pb = TensorView(bias, "bias").data<float>({of.packed()});
  float* out = TensorView(hidden, "hidden").data<float>({of.samples, columns, cells});
  py::gil_scoped_release release;
  const int64_t stride = panel_stride(columns);
  std::vector<float> maps(2 * d * stride);  // of either modality, [D, R]
  for (int64_t m = 0; m < 2; ++m) {
    for (int64_t r = 0; r < columns; ++r) {
      const float* from = pw + of.row(m, r) * d;
      for (int64_t k = 0; k < d; ++k) maps[(m * d + k) * stride + r] = from[k];
    }
  }
  parallel_for(of.samples, 1, threads, [&](int64_t b0, int64_t b1) {
    CellBuffer buffer(of);
    for (int64_t b = b0; b < b1; ++b) {
      const int64_t m = of.infrared(b);
      each_cells(of.grid, [&](int64_t g, int64_t n) {
        VIFAST_DISPATCH(gather_cells, of.grid, px + b * of.pixels(), nullptr, g, n, buffer.rows.get());
        buffer.products({buffer.rows.get(), d, 1}, n, maps.data() + m * d * stride, d, stride, columns, buffer.columns.get());
        for (int64_t r = 0; r < columns; ++r) {
          float* plane = out + (b * columns + r) * cells + g;
          for (int64_t k = 0; k < n; ++k) plane[k] = buffer.columns.get()[k * columns + r] + pb[of.row(m, r)];
        }
      });
    }
  });
}

// grad [B, R, G]; to_weight [P, D], to_bias [P], to_images as images or None.
void prompt_hidden_backward(py::object grad, py::object images, py::object modality, py::object weight, int64_t specific, int64_t side,
                            py::object to_weight, py::object to_bias, py::object to_images, int threads) {
  const TensorView vi(images, "images"), vw(weight, "weight");
  const float *px = vi.data<float>({-1, -1, -1, -1}), *pw = vw.data<float>({-1, -1});
  const PromptSizes of = prompt_sizes(vi, modality, vw.size(0), specific, side);
  const int64_t d = of.grid.size(), cells = of.grid.cells(), columns = of.columns();
  const float* pg = TensorView(grad, "grad").data<float>({of.samples, columns, cells});
  float* out = TensorView(to_weight, "to_weight").data<float>({of.packed(), d});
  float* out_bias = TensorView(to_bias, "to_bias").data<float>({of.packed()});
  float* back = nullptr;
  if (!to_images.is_none()) {
    back = TensorView(to_images, "to_images").data<float>({of.samples, of.grid.channels, of.grid.height, of.grid.width});
  }
  py::gil_scoped_release release;
  const int64_t sums = columns * d;
  std::vector<float> partial(kSampleGroups * 2 * (sums + columns));  // of either modality [R, D], then [R] of the bias
  std::vector<float> maps(back == nullptr ? 0 : 2 * sums);           // [R, D]
  for (int64_t m = 0; m < 2 && back != nullptr; ++m) {
    for (int64_t r = 0; r < columns; ++r) std::copy_n(pw + of.row(m, r) * d, d, &maps[(m * columns + r) * d]);
  }
  parallel_for(kSampleGroups, 1, threads, [&](int64_t t0, int64_t t1) {
    CellBuffer buffer(of);
    for (int64_t t = t0; t < t1; ++t) {
      for (int64_t b = first_sample(t, of.samples); b < first_sample(t + 1, of.samples); ++b) {
        const int64_t m = of.infrared(b);
        float* to = &partial[(2 * t + m) * (sums + columns)];
        const float* planes = pg + b * columns * cells;
        for (int64_t r = 0; r < columns; ++r) {
          float total = 0;
          for (int64_t k = 0; k < cells; ++k) total += planes[r * cells + k];
          to[sums + r] += total;
        }
        each_cells(of.grid, [&](int64_t g, int64_t n) {
          VIFAST_DISPATCH(gather_cells, of.grid, px + b * of.pixels(), nullptr, g, n, buffer.rows.get());
          buffer.products({planes + g, cells, 1}, columns, buffer.rows.get(), n, d, d, to, true);
          if (back == nullptr) return;
          buffer.products({planes + g, 1, cells}, n, &maps[m * sums], columns, d, d, buffer.rows.get());
          VIFAST_DISPATCH(scatter_cells, of.grid, buffer.rows.get(), g, n, back + b * of.pixels(), nullptr, nullptr);
        });
      }
    }
  });
  std::fill_n(out, of.packed() * d, 0.0f);
  std::fill_n(out_bias, of.packed(), 0.0f);
  for (int64_t part = 0; part < 2 * kSampleGroups; ++part) {
    const float* from = &partial[part * (sums + columns)];
    for (int64_t r = 0; r < columns; ++r) {
      float* to = out + of.row(part % 2, r) * d;
      for (int64_t k = 0; k < d; ++k) to[k] += from[r * d + k];
      out_bias[of.row(part % 2, r)] += from[sums + r];
    }
  }
}

}  // namespace

void bind_prompt_hidden(py::module_& m) {
  m.def("prompt_hidden", &prompt_hidden, py::arg("images"), py::arg("modality"), py::arg("weight"), py::arg("bias"), py::arg("specific"),
        py::arg("side"), py::arg("hidden"), py::arg("threads"), "First linear maps of the cells of images, see csrc/cells.h.");
  m.def("prompt_hidden_backward", &prompt_hidden_backward, py::arg("grad"), py::arg("images"), py::arg("modality"), py::arg("weight"),
        py::arg("specific"), py::arg("side"), py::arg("to_weight"), py::arg("to_bias"), py::arg("to_images"), py::arg("threads"),
        "Its gradients.");
}

}  // namespace vifast
