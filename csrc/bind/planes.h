// How the ops on feature maps walk them: blocks of planes, in place where a map is float32 and contiguous.
#pragma once
#include <algorithm>
#include <memory>
#include <string>

#include "../parallel.h"
#include "../planes.h"
#include "../tensor_view.h"

namespace vifast {

// A tensor [N, C, H, W] of float32, float16 or bfloat16, contiguous or channels-last.
Map map_of(const py::object& tensor, const char* name);

// The same of a map that was just allocated, to be written.
Map fresh_map_of(const py::object& tensor, const char* name);

// Throws unless `map` has the sizes of `like`.
void check_same_sizes(const Map& map, const char* name, const Map& like);

struct Block {
  int64_t image, channel, n, row;  // row: of the first plane among all [N * C]
};

// Calls body(worker, block) for all blocks of planes of one image, in parallel; each thread makes itself a worker first.
template <class MakeWorker, class Body>
void each_block(const Map& map, int threads, MakeWorker make_worker, Body body) {
  const int64_t per_image = (map.channels + kPlanes - 1) / kPlanes;
  const int64_t grain = std::max<int64_t>(1, (1 << 15) / (kPlanes * map.positions));
  parallel_for(map.images * per_image, grain, threads, [&](int64_t b0, int64_t b1) {
    auto worker = make_worker();
    for (int64_t b = b0; b < b1; ++b) {
      const int64_t image = b / per_image, channel = b % per_image * kPlanes;
      body(worker, Block{image, channel, std::min(kPlanes, map.channels - channel), image * map.channels + channel});
    }
  });
}

// One thread's access to the planes of a map.
class Planes {
 public:
  explicit Planes(const Map& map) : map_(map), buffer_(map.in_place() ? nullptr : new float[kPlanes * map.positions]) {}

  // The planes of a block, to be read, or with `place` to be filled.
  const float* read(const Block& block) {
    if (!map_.in_place()) VIFAST_DISPATCH(load_planes, map_, block.image, block.channel, block.n, buffer_.get());
    return place(block);
  }
  float* place(const Block& block) {
    return map_.in_place() ? static_cast<float*>(map_.data) + block.row * map_.positions : buffer_.get();
  }
  void store(const Block& block) {
    if (!map_.in_place()) VIFAST_DISPATCH(store_planes, map_, block.image, block.channel, block.n, buffer_.get());
  }

 private:
  Map map_;
  std::unique_ptr<float[]> buffer_;
};

}  // namespace vifast
