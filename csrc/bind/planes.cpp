#include "planes.h"

#include "../huge_pages.h"
#include "bind.h"

namespace vifast {

Map map_of(const py::object& tensor, const char* name) {
  const TensorView view(tensor, name);
  const bool last = view.channels_last();
  const auto [data, kind] = view.is<BFloat16Bits>() ? std::pair<void*, Float>(view.map<BFloat16Bits>(last), Float::bf16)
                            : view.is<Float16Bits>() ? std::pair<void*, Float>(view.map<Float16Bits>(last), Float::f16)
                                                     : std::pair<void*, Float>(view.map<float>(last), Float::f32);
  return {data, kind, view.size(0), view.size(1), view.size(2) * view.size(3), last};
}

Map fresh_map_of(const py::object& tensor, const char* name) {
  const Map map = map_of(tensor, name);
  prefer_huge_pages(map.data, map.images * map.channels * map.positions * (map.kind == Float::f32 ? 4 : 2));
  return map;
}

void check_same_sizes(const Map& map, const char* name, const Map& like) {
  if (map.images == like.images && map.channels == like.channels && map.positions == like.positions) return;
  throw py::value_error(std::string(name) + ": expected the sizes of x");
}

namespace {

// mean, var: [N, C], of the positions of every channel of x; the variance is biased.
void instance_stats(py::object x, py::object mean, py::object var, int threads) {
  const Map map = map_of(x, "x");
  float* pm = TensorView(mean, "mean").data<float>({map.images, map.channels});
  float* pv = TensorView(var, "var").data<float>({map.images, map.channels});
  py::gil_scoped_release release;
  each_block(map, threads, [&] { return Planes(map); }, [&](Planes& planes, const Block& block) {
    const float* from = planes.read(block);
    VIFAST_DISPATCH(plane_stats, from, block.n, map.positions, pm + block.row, pv + block.row);
  });
}

}  // namespace

void bind_planes(py::module_& m) {
  m.def("instance_stats", &instance_stats, py::arg("x"), py::arg("mean"), py::arg("var"), py::arg("threads"),
        "Mean and biased variance of every plane.");
}

}  // namespace vifast
