#include "../planes.h"

#include "half-inl.h"
#include "lanes-inl.h"

namespace vifast::VIFAST_ISA {

namespace {

template <class F>
void load(const Map& map, int64_t image, int64_t channel, int64_t n, float* out) {
  const auto* from = static_cast<const typename F::Stored*>(map.data) + image * map.channels * map.positions;
  if (!map.channels_last) {
    from += channel * map.positions;
#pragma omp simd
    for (int64_t i = 0; i < n * map.positions; ++i) out[i] = F::read(from[i]);
    return;
  }
  from += channel;
  for (int64_t i = 0; i < map.positions; ++i) {
    for (int64_t k = 0; k < n; ++k) out[k * map.positions + i] = F::read(from[i * map.channels + k]);
  }
}

template <class F>
void store(const Map& map, int64_t image, int64_t channel, int64_t n, const float* planes) {
  auto* to = static_cast<typename F::Stored*>(map.data) + image * map.channels * map.positions;
  if (!map.channels_last) {
    to += channel * map.positions;
#pragma omp simd
    for (int64_t i = 0; i < n * map.positions; ++i) to[i] = F::write(planes[i]);
    return;
  }
  to += channel;
  for (int64_t i = 0; i < map.positions; ++i) {
    for (int64_t k = 0; k < n; ++k) to[i * map.channels + k] = F::write(planes[k * map.positions + i]);
  }
}

}  // namespace

void load_planes(const Map& map, int64_t image, int64_t channel, int64_t n, float* out) {
  switch (map.kind) {
    case Float::f32: return load<Single>(map, image, channel, n, out);
    case Float::f16: return load<Float16>(map, image, channel, n, out);
    case Float::bf16: return load<BFloat16>(map, image, channel, n, out);
  }
}

void store_planes(const Map& map, int64_t image, int64_t channel, int64_t n, const float* planes) {
  switch (map.kind) {
    case Float::f32: return store<Single>(map, image, channel, n, planes);
    case Float::f16: return store<Float16>(map, image, channel, n, planes);
    case Float::bf16: return store<BFloat16>(map, image, channel, n, planes);
  }
}

void plane_stats(const float* x, int64_t n, int64_t positions, float* mean, float* var) {
  for (int64_t k = 0; k < n; ++k) {
    const float* plane = x + k * positions;
    Lanes total{}, square{};
    for (int64_t i = 0; i < positions; i += kLanes) total += load(plane + i, positions - i);
    mean[k] = sum(total) / positions;
    for (int64_t i = 0; i < positions; i += kLanes) {
      const Lanes off = first(load(plane + i, positions - i) - mean[k], positions - i);
      square += off * off;
    }
    var[k] = sum(square) / positions;
  }
}

}  // namespace vifast::VIFAST_ISA
