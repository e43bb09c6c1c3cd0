#include <algorithm>
#include <atomic>
#include <cstring>
#include <limits>

#include "../parallel.h"
#include "../rerank.h"

namespace vifast {

namespace {

constexpr int64_t kGrain = 1 << 15;  // values below which a second thread does not pay

bool before(const Neighbour& a, const Neighbour& b) { return a.value != b.value ? a.value < b.value : a.index < b.index; }

void push(const NearestState& s, int64_t i, Neighbour candidate) {
  Neighbour* own = s.slot + i * s.room;
  own[s.count[i]++] = candidate;
  if (s.count[i] < s.room) return;
  std::nth_element(own, own + s.k - 1, own + s.room, before);
  s.count[i] = static_cast<int32_t>(s.k);
  s.worst[i] = own[s.k - 1].value;
}

// Calls body(c) for every value of x that may enter a list. worst may fall meanwhile.
template <class Body>
void each_hit(const float* x, const float* worst, bool each, int64_t n, Body body) {
  alignas(64) uint8_t hit[kNearestStep];
  for (int64_t block = 0;; block += kNearestStep) {
    VIFAST_DISPATCH(nearest_next, x, worst, each, block, n, &block, hit);
    if (block >= n) return;
    for (int64_t part = 0; part < kNearestStep; part += 8) {
      uint64_t hits;
      std::memcpy(&hits, hit + part, sizeof(hits));
      if (hits == 0) continue;
      for (int64_t c = block + part; c < block + part + 8; ++c) {
        if (hit[c - block] && x[c] < worst[each ? c : 0]) body(c);
      }
    }
  }
}

}  // namespace

bool nearest_fold(const float* x, int64_t rows, int64_t cols, bool by_columns, int64_t first, NearestState s, float* most,
                  int threads) {
  std::atomic<bool> all_finite{true};
  if (by_columns) {
    parallel_for(cols, std::max<int64_t>(64, kGrain / std::max<int64_t>(1, rows)), threads, [&](int64_t c0, int64_t c1) {
      bool finite = true;
      for (int64_t r = 0; r < rows; ++r) {
        const float* row = x + r * cols + c0;
        VIFAST_DISPATCH(nearest_most, row, true, c1 - c0, most + c0, &finite);
        if (s.slot == nullptr) continue;
        each_hit(row, s.worst + c0, true, c1 - c0,
                 [&](int64_t c) { push(s, c0 + c, {row[c], static_cast<int32_t>(first + r)}); });
      }
      if (!finite) all_finite = false;
    });
  } else {
    parallel_for(rows, std::max<int64_t>(1, kGrain / std::max<int64_t>(1, cols)), threads, [&](int64_t r0, int64_t r1) {
      bool finite = true;
      for (int64_t r = r0; r < r1; ++r) {
        const float* row = x + r * cols;
        VIFAST_DISPATCH(nearest_most, row, false, cols, most + r, &finite);
        if (s.slot == nullptr) continue;
        each_hit(row, s.worst + r, false, cols, [&](int64_t c) { push(s, r, {row[c], static_cast<int32_t>(first + c)}); });
      }
      if (!finite) all_finite = false;
    });
  }
  return all_finite;
}

void nearest_finish(NearestState s, int64_t fill, int64_t r0, int64_t r1, int32_t* lists, int64_t length) {
  for (int64_t i = r0; i < r1; ++i) {
    Neighbour* own = s.slot + i * s.room;
    std::sort(own, own + s.count[i], before);
    const int64_t found = std::min<int64_t>(s.count[i], length);
    for (int64_t k = 0; k < length; ++k)
      lists[i * length + k] = k < found ? own[k].index : static_cast<int32_t>(fill + k - found);
  }
}

}  // namespace vifast
