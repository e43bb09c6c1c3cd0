#include "../purifier.h"

#include "bind.h"
#include "planes.h"

namespace vifast {

namespace {

constexpr int64_t kPooled = 5;

struct PurifierInputs {
  Map x, gate_u, gate_x;
  const float *mean, *rstd, *weight, *bias;
};

PurifierInputs inputs_of(const py::object& x, const py::object& gate_u, const py::object& gate_x, const py::object& mean,
                         const py::object& rstd, const py::object& weight, const py::object& bias) {
  const Map map = map_of(x, "x"), u = map_of(gate_u, "gate_u"), g = map_of(gate_x, "gate_x");
  check_same_sizes(u, "gate_u", map);
  check_same_sizes(g, "gate_x", map);
  const int64_t n = map.images, c = map.channels;
  return {map,
          u,
          g,
          TensorView(mean, "mean").data<float>({n, c}),
          TensorView(rstd, "rstd").data<float>({n, c}),
          TensorView(weight, "weight").data<float>({c}),
          TensorView(bias, "bias").data<float>({c})};
}

// One thread's planes of the three maps.
struct PurifierReader {
  const PurifierInputs& in;
  Planes x, gate_u, gate_x;
  explicit PurifierReader(const PurifierInputs& inputs) : in(inputs), x(in.x), gate_u(in.gate_u), gate_x(in.gate_x) {}
  PurifierPlanes read(const Block& b) {
    return {x.read(b),           gate_u.read(b),          gate_x.read(b),        in.mean + b.row, in.rstd + b.row,
            in.weight + b.channel, in.bias + b.channel, b.n, in.x.positions};
  }
};

// pooled [5, N, C].
void purifier(py::object x, py::object gate_u, py::object gate_x, py::object mean, py::object rstd, py::object weight, py::object bias,
              py::object pooled, int threads) {
  const PurifierInputs in = inputs_of(x, gate_u, gate_x, mean, rstd, weight, bias);
  const int64_t stride = in.x.images * in.x.channels;
  float* out = TensorView(pooled, "pooled").data<float>({kPooled, in.x.images, in.x.channels});
  py::gil_scoped_release release;
  each_block(in.x, threads, [&] { return PurifierReader(in); }, [&](PurifierReader& reader, const Block& block) {
    const PurifierPlanes planes = reader.read(block);
    VIFAST_DISPATCH(purifier_forward, planes, out + block.row, stride);
  });
}

// grad, pooled [5, N, C]; to_*: the gradients of the three maps; sums [2, N, C].
void purifier_backward(py::object grad, py::object pooled, py::object x, py::object gate_u, py::object gate_x, py::object mean,
                       py::object rstd, py::object weight, py::object bias, bool instance, py::object to_x, py::object to_gate_u,
                       py::object to_gate_x, py::object sums, int threads) {
  const PurifierInputs in = inputs_of(x, gate_u, gate_x, mean, rstd, weight, bias);
  const Map maps[] = {fresh_map_of(to_x, "to_x"), fresh_map_of(to_gate_u, "to_gate_u"), fresh_map_of(to_gate_x, "to_gate_x")};
  check_same_sizes(maps[0], "to_x", in.x);
  check_same_sizes(maps[1], "to_gate_u", in.x);
  check_same_sizes(maps[2], "to_gate_x", in.x);
  const int64_t n = in.x.images, c = in.x.channels, stride = n * c;
  const float *pg = TensorView(grad, "grad").data<float>({kPooled, n, c}), *pp = TensorView(pooled, "pooled").data<float>({kPooled, n, c});
  float* ps = TensorView(sums, "sums").data<float>({2, n, c});
  struct Worker {
    PurifierReader from;
    Planes x, gate_u, gate_x;
    std::unique_ptr<float[]> step;
  };
  py::gil_scoped_release release;
  auto make_worker = [&] {
    return Worker{PurifierReader(in), Planes(maps[0]), Planes(maps[1]), Planes(maps[2]),
                  std::unique_ptr<float[]>(new float[in.x.positions])};
  };
  each_block(in.x, threads, make_worker, [&](Worker& w, const Block& block) {
    const PurifierPlanes planes = w.from.read(block);
    VIFAST_DISPATCH(purifier_backward, planes, instance, pg + block.row, pp + block.row, stride, w.x.place(block), w.gate_u.place(block),
                    w.gate_x.place(block), ps + block.row, w.step.get());
    w.x.store(block);
    w.gate_u.store(block);
    w.gate_x.store(block);
  });
}

}  // namespace

void bind_purifier(py::module_& m) {
  m.def("purifier", &purifier, py::arg("x"), py::arg("gate_u"), py::arg("gate_x"), py::arg("mean"), py::arg("rstd"), py::arg("weight"),
        py::arg("bias"), py::arg("pooled"), py::arg("threads"), "Five pooled vectors, see csrc/purifier.h.");
  m.def("purifier_backward", &purifier_backward, py::arg("grad"), py::arg("pooled"), py::arg("x"), py::arg("gate_u"), py::arg("gate_x"),
        py::arg("mean"), py::arg("rstd"), py::arg("weight"), py::arg("bias"), py::arg("instance"), py::arg("to_x"), py::arg("to_gate_u"),
        py::arg("to_gate_x"), py::arg("sums"), py::arg("threads"), "Its gradient.");
}

}  // namespace vifast
