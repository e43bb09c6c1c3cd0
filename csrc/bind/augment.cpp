#include "../augment.h"

#include <cstring>

#include "../augment_draws.h"
#include "bind.h"
#include "planes.h"

namespace vifast {

namespace {

constexpr int64_t kCaches = 8 << 20;  // bytes; of a longer result little would be found in them

void augment(py::object images, py::object records, py::object constants, int pad, py::object out, int threads) {
  const Map map = fresh_map_of(out, "out");
  const TensorView view(images, "images");
  AugmentBatch batch{view.data<uint8_t>({map.images, -1, -1, 3}), nullptr, {}, static_cast<uint8_t>(pad), map.images, 0, 0, map, false};
  batch.height = view.size(1), batch.width = view.size(2);
  batch.past_caches = map.images * 3 * map.positions * (map.kind == Float::f32 ? 4 : 2) > kCaches;
  const auto* rows = TensorView(records, "records").data<int32_t>({batch.n, kAugmentColumns});
  batch.records = reinterpret_cast<const AugmentRecord*>(rows);
  std::memcpy(&batch.constants, TensorView(constants, "constants").data<float>({kAugmentConstants}), sizeof(AugmentConstants));
  if (map.channels != 3 || map.positions != batch.height * batch.width) {
    throw py::value_error("out: expected three planes of the size of images");
  }
  py::gil_scoped_release release;
  const int64_t grain = std::max<int64_t>(1, (1 << 14) / std::max<int64_t>(1, batch.width));
  parallel_for(batch.n * batch.height, grain, threads, [&](int64_t begin, int64_t end) {
    const std::unique_ptr<float[]> buffer(new float[augment_buffer(batch.width)]);
    VIFAST_DISPATCH(augment_rows, batch, begin, end, buffer.get());
  });
}

// index, modality: [n]; options: [2, kDrawOptions].
void draws(py::object index, py::object modality, py::object options, int height, int width, uint32_t seed, uint32_t epoch,
           uint32_t view, py::object records) {
  const TensorView samples(index, "index");
  const auto* numbers = samples.data<int64_t>({-1});
  const int64_t n = samples.size(0);
  const auto* sides = TensorView(modality, "modality").data<int64_t>({n});
  for (int64_t i = 0; i < n; ++i) {
    if (sides[i] != 0 && sides[i] != 1) throw py::value_error("modality: expected 0 or 1, got " + std::to_string(sides[i]));
  }
  const auto* table = TensorView(options, "options").data<double>({2, kDrawOptions});
  auto* out = TensorView(records, "records").data<int32_t>({n, kAugmentColumns});
  draw_augment(numbers, sides, n, reinterpret_cast<const DrawOptions*>(table), height, width, seed, epoch, view,
               reinterpret_cast<AugmentRecord*>(out));
}

}  // namespace

void bind_augment(py::module_& m) {
  m.def("augment", &augment, py::arg("images"), py::arg("records"), py::arg("constants"), py::arg("pad"), py::arg("out"),
        py::arg("threads"), "Every step of a record in one pass over uint8 images, see csrc/augment.h.");
  m.def("draw_augment", &draws, py::arg("index"), py::arg("modality"), py::arg("options"), py::arg("height"), py::arg("width"),
        py::arg("seed"), py::arg("epoch"), py::arg("view"), py::arg("records"), "The records of samples, see csrc/augment_draws.h.");
}

}  // namespace vifast
