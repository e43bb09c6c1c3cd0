#include "../packed_rows.h"

#include <algorithm>
#include <vector>

#include "../tensor_view.h"
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

}  // namespace

void bind_packed_rows(py::module_& m) {
  py::class_<Packed>(m, "PackedRows", "Rows made ready for products, see csrc/packed_rows.h.")
      .def(py::init(&pack), py::arg("rows"), py::arg("mean"), py::arg("threads"))
      .def("products", &multiply, py::arg("other"), py::arg("out"), py::arg("threads"),
           "out = rows times other rows; the bits of an element depend on its two rows alone.");
}

}  // namespace vifast
