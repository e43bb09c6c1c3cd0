#include "../packed_rows.h"

#include <algorithm>
#include <vector>

#include "../huge_pages.h"
#include "../parallel.h"
#include "../tensor_view.h"
#include "../weighted_sums.h"
#include "bind.h"

namespace vifast {

namespace {

struct Packed {
  int64_t n;
  PackedRows rows;
};

Packed pack(py::object rows, py::object mean, int threads) {
  const TensorView view(rows, "rows");
  const float* x = view.data<float>({-1, -1});
  const int64_t n = view.size(0), d = view.size(1);
  const float* pm = mean.is_none() ? nullptr : TensorView(mean, "mean").data<float>({d});
  py::gil_scoped_release release;
  std::vector<float> unused(n);
  return {n, PackedRows(x, n, d, pm, unused.data(), threads)};
}

void multiply(const Packed& a, const Packed& b, py::object out, int threads) {
  if (a.rows.columns() != b.rows.columns()) {
    throw py::value_error("other: expected rows of " + std::to_string(a.rows.columns()) + " columns, got " + std::to_string(b.rows.columns()));
  }
  int64_t stride;
  float* to = TensorView(out, "out").rows<float>(a.n, b.n, &stride);
  py::gil_scoped_release release;
  each_tile(a.n, b.n, false, [&](Tile t) { products(a.rows, b.rows, t, false, to + t.row0 * stride + t.col0, stride, threads); });
}

// out = weights times rows, or `add` that to it. weights may be a transposed tile.
void weighted(py::object weights, py::object rows, py::object out, bool add, int threads) {
  const TensorView w(weights, "weights"), x(rows, "rows"), o(out, "out");
  const int64_t m = x.size(0), d = x.size(1), n = o.size(0);
  int64_t x_stride, stride;
  const float* px = x.rows<float>(m, d, &x_stride);
  float* to = o.rows<float>(n, d, &stride);
  const Matrix<float> view = w.matrix<float>(n, m);
  const Weights from{view.data, view.row, view.col};
  py::gil_scoped_release release;
  const int64_t blocks = (d + kSumsWidth - 1) / kSumsWidth;
  const int64_t grain = std::max<int64_t>(1, (int64_t{1} << 18) / std::max<int64_t>(1, n * m * kSumsWidth));
  parallel_for(blocks, grain, threads, [&](int64_t b0, int64_t b1) {
    const auto scratch = aligned(kSumsDepth * kSumsWidth);
    VIFAST_DISPATCH(weighted_sums, from, n, px, m, x_stride, b0 * kSumsWidth, std::min(b1 * kSumsWidth, d), add, to, stride, scratch.get());
  });
}

// memory: [n], just allocated.
void hint(py::object memory) {
  const TensorView view(memory, "memory");
  prefer_huge_pages(view.data<float>({-1}), view.size(0) * 4);
}

}  // namespace

void bind_packed_rows(py::module_& m) {
  m.def("prefer_huge_pages", &hint, py::arg("memory"), "For large memory that will be written, see csrc/huge_pages.h.");
  py::class_<Packed>(m, "PackedRows", "Rows made ready for products, see csrc/packed_rows.h.")
      .def(py::init(&pack), py::arg("rows"), py::arg("mean"), py::arg("threads"))
      .def("products", &multiply, py::arg("other"), py::arg("out"), py::arg("threads"),
           "out = rows times other rows; the bits of an element depend on its two rows alone.");
  m.def("weighted_sums", &weighted, py::arg("weights"), py::arg("rows"), py::arg("out"), py::arg("add"), py::arg("threads"),
        "out = weights times rows, or that more than it was; see csrc/weighted_sums.h.");
}

}  // namespace vifast
