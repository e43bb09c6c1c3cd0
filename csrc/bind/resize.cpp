#include "../resize.h"

#include <algorithm>
#include <map>
#include <tuple>
#include <vector>

#include "../tensor_view.h"
#include "bind.h"

namespace vifast {

namespace {

using TapsOf = std::map<std::tuple<int64_t, int64_t, Filter>, Taps>;

const Taps& find(TapsOf& known, int64_t in, int64_t out, Filter filter) {
  return known.try_emplace({in, out, filter}, in, out, filter).first->second;
}

// images: a sequence of [h, w, 3]; out: [B, height, width, 3].
void resize_images(py::sequence images, bool lanczos, py::object out) {
  struct Image {
    const uint8_t* data;
    int64_t height, width;
  };
  const TensorView to(out, "out");
  const int64_t n = static_cast<int64_t>(py::len(images));
  uint8_t* po = to.data<uint8_t>({n, -1, -1, 3});
  const int64_t height = to.size(1), width = to.size(2);
  std::vector<TensorView> views;
  std::vector<Image> all;
  views.reserve(n);
  for (py::handle image : images) {
    const TensorView& view = views.emplace_back(image, "images");
    all.push_back({view.data<uint8_t>({-1, -1, 3}), view.size(0), view.size(1)});
    if (all.back().height < 1 || all.back().width < 1) throw py::value_error("images: expected at least one pixel each");
  }
  const Filter filter = lanczos ? Filter::lanczos : Filter::bilinear;
  py::gil_scoped_release release;
  // Taps of Lanczos cost as much as the pixels of a small image, and the images of a dataset have few different sides.
  constexpr size_t kMost = 1024;
  thread_local TapsOf known;
  std::vector<uint8_t> scratch;
  for (const Image& image : all) {
    if (known.size() > kMost) known.clear();
    const Taps &rows = find(known, image.height, height, filter), &columns = find(known, image.width, width, filter);
    scratch.resize(std::max<size_t>(scratch.size(), resize_scratch(rows, columns)));
    resize(image.data, rows, columns, scratch.data(), po);
    po += 3 * height * width;
  }
}

}  // namespace

void bind_resize(py::module_& m) {
  m.def("resize_images", &resize_images, py::arg("images"), py::arg("lanczos"), py::arg("out"),
        "Images of any sizes to one size each, see csrc/resize.h.");
}

}  // namespace vifast
