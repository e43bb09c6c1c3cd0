#include <atomic>
#include <mutex>
#include <utility>

#include "check.h"
#include "parallel.h"

using vifast::parallel_for;

TEST(every_item_is_visited_once) {
  for (int64_t n : {0, 1, 2, 7, 64, 1000}) {
    for (int64_t grain : {0, 1, 3, 100, 5000}) {
      for (int threads : {1, 2, 3, 8}) {
        std::vector<int> seen(n);  // of int: chunks are disjoint, so plain writes do not race
        parallel_for(n, grain, threads, [&](int64_t begin, int64_t end) {
          for (int64_t i = begin; i < end; ++i) ++seen[i];
        });
        for (int count : seen) CHECK(count == 1);
      }
    }
  }
}

TEST(chunks_are_no_smaller_than_the_grain) {
  std::mutex guard;
  std::vector<std::pair<int64_t, int64_t>> chunks;
  parallel_for(1000, 300, 8, [&](int64_t begin, int64_t end) {
    const std::lock_guard<std::mutex> lock(guard);
    chunks.emplace_back(begin, end);
  });
  CHECK(chunks.size() == 3);
  for (const auto& chunk : chunks) CHECK(chunk.second - chunk.first >= 300);
}

TEST(a_negative_size_is_nothing) {
  std::atomic<int> calls{0};
  parallel_for(-1, 1, 4, [&](int64_t, int64_t) { ++calls; });
  CHECK(calls == 0);
}
