// Memory of resize, in buffers without a byte to spare; values are compared with Pillow from Python.
#include "check.h"
#include "resize.h"

namespace vifast {
namespace {

TEST(resize_stays_in_its_memory) {
  each_isa([] {
    const int64_t sides[] = {1, 2, 5, 16, 17, 40};
    for (Filter filter : {Filter::bilinear, Filter::lanczos}) {
      for (int64_t h : sides) {
        for (int64_t w : sides) {
          for (int64_t width : sides) {
            const Taps rows(h, 11, filter), columns(w, width, filter);
            const std::vector<uint8_t> image(3 * h * w, 200);
            std::vector<uint8_t> scratch(resize_scratch(rows, columns)), out(3 * rows.out * width);
            resize(image.data(), rows, columns, scratch.data(), out.data());
            for (uint8_t v : out) CHECK(v == 200);  // weights sum to one, up to rounding that vanishes
          }
        }
      }
    }
  });
}

}  // namespace
}  // namespace vifast
