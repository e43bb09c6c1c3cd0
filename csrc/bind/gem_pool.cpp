#include "../gem_pool.h"

#include "bind.h"
#include "planes.h"

namespace vifast {

namespace {

// p: a tensor [], or None for `exponent`.
Gem gem_of(const py::object& p, double exponent, double eps, bool clamp) {
  const float power = p.is_none() ? static_cast<float>(exponent) : *TensorView(p, "p").data<float>({});
  return {power, static_cast<float>(eps), clamp};
}

void gem_pool(py::object x, py::object p, double exponent, double eps, bool clamp, py::object out, int threads) {
  const Map map = map_of(x, "x");
  const Gem gem = gem_of(p, exponent, eps, clamp);
  float* po = TensorView(out, "out").data<float>({map.images, map.channels});
  py::gil_scoped_release release;
  each_block(map, threads, [&] { return Planes(map); }, [&](Planes& planes, const Block& block) {
    const float* from = planes.read(block);
    VIFAST_DISPATCH(gem_forward, from, block.n, map.positions, gem, po + block.row);
  });
}

// grad_p: [N, C], or None.
void gem_pool_backward(py::object grad, py::object x, py::object out, py::object p, double exponent, double eps, bool clamp,
                       py::object grad_x, py::object grad_p, int threads) {
  const Map map = map_of(x, "x"), to = fresh_map_of(grad_x, "grad_x");
  check_same_sizes(to, "grad_x", map);
  const Gem gem = gem_of(p, exponent, eps, clamp);
  const auto rows = {map.images, map.channels};
  const float *pg = TensorView(grad, "grad").data<float>(rows), *po = TensorView(out, "out").data<float>(rows);
  float* pp = grad_p.is_none() ? nullptr : TensorView(grad_p, "grad_p").data<float>(rows);
  struct Worker {
    Planes from, to;
  };
  py::gil_scoped_release release;
  each_block(map, threads, [&] { return Worker{Planes(map), Planes(to)}; }, [&](Worker& worker, const Block& block) {
    const float* from = worker.from.read(block);
    VIFAST_DISPATCH(gem_backward, from, block.n, map.positions, gem, pg + block.row, po + block.row, worker.to.place(block),
                    pp == nullptr ? nullptr : pp + block.row);
    worker.to.store(block);
  });
}

}  // namespace

void bind_gem_pool(py::module_& m) {
  m.def("gem_pool", &gem_pool, py::arg("x"), py::arg("p"), py::arg("exponent"), py::arg("eps"), py::arg("clamp"), py::arg("out"),
        py::arg("threads"), "Generalised mean of every plane, see csrc/gem_pool.h.");
  m.def("gem_pool_backward", &gem_pool_backward, py::arg("grad"), py::arg("x"), py::arg("out"), py::arg("p"), py::arg("exponent"),
        py::arg("eps"), py::arg("clamp"), py::arg("grad_x"), py::arg("grad_p"), py::arg("threads"), "Its gradient.");
}

}  // namespace vifast
