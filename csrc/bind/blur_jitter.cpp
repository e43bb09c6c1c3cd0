#include "../blur_jitter.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "../parallel.h"
#include "../tensor_view.h"
#include "bind.h"

namespace vifast {

namespace {

void check_taps(const int32_t* taps, int64_t batch, int64_t radius) {
  for (int64_t i = 0; i < batch; ++i, taps += radius + 1) {
    int64_t sum = -taps[0];
    for (int64_t k = 0; k <= radius; ++k) sum += taps[k] < 0 ? int64_t{1} << 40 : 2 * int64_t{taps[k]};
    if (sum != kTapSum) throw py::value_error("taps[" + std::to_string(i) + "]: expected numbers from 0 on that sum to 2^22, the first once, others twice");
  }
}

// images, out: [B, H, W, 3]; factors: [B, 2]; contrast_first: [B]; taps: [B, R + 1].
void blur_jitter(py::object images, py::object factors, py::object contrast_first, py::object taps, py::object out, int threads) {
  const TensorView view(images, "images"), kernel(taps, "taps");
  const uint8_t* from = view.data<uint8_t>({-1, -1, -1, 3});
  const int64_t batch = view.size(0), height = view.size(1), width = view.size(2), bytes = 3 * height * width;
  const float* factor = TensorView(factors, "factors").data<float>({batch, 2});
  const bool* first = TensorView(contrast_first, "contrast_first").data<bool>({batch});
  const int32_t* tap = kernel.data<int32_t>({batch, -1});
  const int64_t radius = kernel.size(1) - 1;
  uint8_t* to = TensorView(out, "out").data<uint8_t>({batch, height, width, 3});
  if (radius < 0 || radius >= std::min(height, width)) throw py::value_error("taps: expected a radius below height and width");
  check_taps(tap, batch, radius);
  py::gil_scoped_release release;

  auto blurred = [&](int64_t i) { return tap[i * (radius + 1)] != kTapSum; };
  auto jittered = [&](int64_t i) { return factor[2 * i] != 1 || factor[2 * i + 1] != 1; };
  auto image = [&](int64_t i, int32_t* space) {
    if (!blurred(i) && !jittered(i)) {
      std::memcpy(to + i * bytes, from + i * bytes, bytes);
      return;
    }
    uint8_t table[256];
    jitter_table(from + i * bytes, height * width, {factor[2 * i], factor[2 * i + 1], first[i]}, table);
    if (blurred(i)) {
      VIFAST_DISPATCH(blur_image, from + i * bytes, Blur{height, width, radius, table, tap + i * (radius + 1)}, space, to + i * bytes);
    } else {
      std::transform(from + i * bytes, from + (i + 1) * bytes, to + i * bytes, [&](uint8_t v) { return table[v]; });
    }
  };

  // A blur takes many times a copy, and batches have runs of one modality: images are dealt out by their work.
  std::vector<int64_t> order(batch);
  std::iota(order.begin(), order.end(), int64_t{0});
  auto work = [&](int64_t i) { return 2 * blurred(i) + jittered(i); };
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return work(a) > work(b); });
  const int64_t hands = std::min<int64_t>(std::max(threads, 1), batch);
  parallel_for(hands, 1, threads, [&](int64_t h0, int64_t h1) {
    std::unique_ptr<int32_t[]> space(new int32_t[blur_space(width, radius)]());
    for (int64_t h = h0; h < h1; ++h) {
      for (int64_t k = h; k < batch; k += hands) image(order[k], space.get());
    }
  });
}

}  // namespace

void bind_blur_jitter(py::module_& m) {
  m.def("blur_jitter", &blur_jitter, py::arg("images"), py::arg("factors"), py::arg("contrast_first"), py::arg("taps"), py::arg("out"),
        py::arg("threads"), "Brightness, contrast and Gaussian blur, see csrc/blur_jitter.h.");
}

}  // namespace vifast
