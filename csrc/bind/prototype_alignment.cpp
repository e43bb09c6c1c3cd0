#include "../prototype_alignment.h"

#include <vector>

#include "../packed_rows.h"
#include "../parallel.h"
#include "../tensor_view.h"
#include "../unit_rows.h"
#include "bind.h"
#include "rows.h"

namespace vifast {

namespace {

std::vector<double> inverse_norms_of(const float* x, int64_t n, int64_t d, int threads) {
  std::vector<double> inv(n);
  parallel_for(n, row_grain(d), threads, [&](int64_t r0, int64_t r1) { VIFAST_DISPATCH(inverse_norms, x, d, r0, r1, inv.data()); });
  return inv;
}

// Unit relations [N, K] of student and teacher to the prototypes.
void prototype_relations(py::object student, py::object teacher, py::object prototypes, double tau, py::object w_student, py::object w_teacher,
                         int threads) {
  const TensorView vs(student, "student"), vp(prototypes, "prototypes");
  const float *ps = vs.data<float>({-1, -1}), *pp = vp.data<float>({-1, vs.size(1)});
  const int64_t n = vs.size(0), d = vs.size(1), k = vp.size(0);
  const float* pt = TensorView(teacher, "teacher").data<float>({n, d});
  float *ws = TensorView(w_student, "w_student").data<float>({n, k}), *wt = TensorView(w_teacher, "w_teacher").data<float>({n, k});
  py::gil_scoped_release release;
  std::vector<float> sq_p(k), sq_f(n);
  const PackedRows packed(pp, k, d, nullptr, sq_p.data(), threads);
  const std::vector<double> inv_p = inverse_norms_of(pp, k, d, threads);
  auto relate = [&](const float* rows, float* out) {
    const PackedRows feat(rows, n, d, nullptr, sq_f.data(), threads);
    each_tile(n, k, false, [&](Tile t) { products(feat, packed, t, false, out + t.row0 * k + t.col0, k, threads); });
    const std::vector<double> inv_f = inverse_norms_of(rows, n, d, threads);
    parallel_for(n, row_grain(k), threads, [&](int64_t r0, int64_t r1) {
      VIFAST_DISPATCH(relation_rows, out, k, r0, r1, inv_f.data(), inv_p.data(), tau);
    });
  };
  relate(ps, ws);
  relate(pt, wt);
}

// grad [N, K], dL/dW, becomes the factors of the prototypes in dL/d(unit student), in place.
void prototype_backward(py::object grad, py::object w_student, py::object prototypes, double tau, int threads) {
  const TensorView vg(grad, "grad"), vp(prototypes, "prototypes");
  float* g = vg.data<float>({-1, -1});
  const int64_t n = vg.size(0), k = vg.size(1);
  const float *w = TensorView(w_student, "w_student").data<float>({n, k}), *pp = vp.data<float>({k, -1});
  const int64_t d = vp.size(1);
  py::gil_scoped_release release;
  const std::vector<double> inv_p = inverse_norms_of(pp, k, d, threads);
  parallel_for(n, row_grain(k), threads, [&](int64_t r0, int64_t r1) {
    VIFAST_DISPATCH(relation_backward_rows, g, w, k, r0, r1, inv_p.data(), tau);
  });
}

}  // namespace

void bind_prototype_alignment(py::module_& m) {
  m.def("prototype_relations", &prototype_relations, py::arg("student"), py::arg("teacher"), py::arg("prototypes"), py::arg("tau"),
        py::arg("w_student"), py::arg("w_teacher"), py::arg("threads"), "Unit relations to prototypes, see csrc/prototype_alignment.h.");
  m.def("prototype_backward", &prototype_backward, py::arg("grad"), py::arg("w_student"), py::arg("prototypes"), py::arg("tau"),
        py::arg("threads"), "The gradient of the student's unit relations, as factors of the prototypes.");
}

}  // namespace vifast
