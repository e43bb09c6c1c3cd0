// Rows grouped by their class, on the host.
#pragma once
#include <cstdint>
#include <vector>

namespace vifast {

// Rows by code 0 .. k-1, in rising order within a code; codes outside belong to none.
struct RowsByClass {
  std::vector<int64_t> start, rows;
  template <class Code>
  RowsByClass(const Code* codes, int64_t n, int64_t k) : start(k + 1, 0), rows(n) {
    auto inside = [&](int64_t i) { return codes[i] >= 0 && codes[i] < k; };
    for (int64_t i = 0; i < n; ++i) {
      if (inside(i)) ++start[codes[i] + 1];
    }
    for (int64_t c = 0; c < k; ++c) start[c + 1] += start[c];
    std::vector<int64_t> next(start.begin(), start.end() - 1);
    for (int64_t i = 0; i < n; ++i) {
      if (inside(i)) rows[next[codes[i]]++] = i;
    }
  }
  const int64_t* of(int64_t code) const { return rows.data() + start[code]; }
  int64_t count(int64_t code) const { return start[code + 1] - start[code]; }
};

}  // namespace vifast
