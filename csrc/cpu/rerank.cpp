#include "../rerank.h"

#include <algorithm>
#include <cmath>
#include <vector>

namespace vifast {

namespace {

// The order in which NumPy sums a contiguous row of float32.
float pairwise_sum(const float* x, int64_t n) {
  if (n < 8) {
    float sum = -0.0f;
    for (int64_t i = 0; i < n; ++i) sum += x[i];
    return sum;
  }
  if (n > 128) {
    const int64_t half = n / 2 - n / 2 % 8;
    return pairwise_sum(x, half) + pairwise_sum(x + half, n - half);
  }
  float r[8];
  std::copy(x, x + 8, r);
  int64_t i = 8;
  for (; i + 8 <= n; i += 8) {
    for (int64_t k = 0; k < 8; ++k) r[k] += x[i + k];
  }
  float sum = ((r[0] + r[1]) + (r[2] + r[3])) + ((r[4] + r[5]) + (r[6] + r[7]));
  for (; i < n; ++i) sum += x[i];
  return sum;
}

// Distinct columns out of n, few of them at a time: only those are cleared.
class Marks {
 public:
  explicit Marks(int64_t n) : known_(n, 0) {}
  void add(int32_t c) {
    if (known_[c]) return;
    known_[c] = 1;
    list_.push_back(c);
  }
  std::vector<int32_t>& list() { return list_; }
  void clear() {
    for (int32_t c : list_) known_[c] = 0;
    list_.clear();
  }

 private:
  std::vector<uint8_t> known_;
  std::vector<int32_t> list_;
};

class Accumulator {  // sums over such columns
 public:
  explicit Accumulator(int64_t n) : sum_(n, 0.0f), marks_(n) {}
  float& at(int32_t c) {
    marks_.add(c);
    return sum_[c];
  }
  std::vector<int32_t>& touched() { return marks_.list(); }
  void clear() {
    for (int32_t c : marks_.list()) sum_[c] = 0;
    marks_.clear();
  }

 private:
  std::vector<float> sum_;
  Marks marks_;
};

// Calls add(sum, a, b) for every column that row q shares with a gallery row, columns rising.
template <class Add>
void each_shared(SparseRows v, int64_t q, Inverted g, Accumulator& sums, Add add) {
  for (int64_t e = v.begin[q]; e < v.begin[q] + v.count[q]; ++e) {
    const float a = v.value[e];
    const int64_t end = g.begin[v.column[e] + 1];
    for (int64_t k = g.begin[v.column[e]]; k < end; ++k) {
      float& sum = sums.at(g.row[k]);
      sum = add(sum, a, g.value[k]);
    }
  }
}

}  // namespace

void reciprocal_sets(Lists lists, int64_t width, int64_t r0, int64_t r1, int32_t* set, int32_t* count) {
  for (int64_t i = r0; i < r1; ++i) count[i] = reciprocal_of(lists.index, lists.length, width, i, set + i * width);
}

void expanded_sets(Sets wide, Sets narrow, int64_t n, int64_t r0, int64_t r1, const int64_t* begin, int32_t* count,
                   int32_t* column) {
  Marks members(n);
  for (int64_t i = r0; i < r1; ++i) {
    const int32_t* base = wide.member + i * wide.width;
    for (int32_t k = 0; k < wide.count[i]; ++k) {
      members.add(base[k]);
      const int32_t* set = narrow.member + base[k] * narrow.width;
      const int32_t size = narrow.count[base[k]];
      if (!joins(set, size, base, wide.count[i])) continue;
      for (int32_t m = 0; m < size; ++m) members.add(set[m]);
    }
    std::vector<int32_t>& all = members.list();
    if (column) {
      std::sort(all.begin(), all.end());
      std::copy(all.begin(), all.end(), column + begin[i]);
    } else {
      count[i] = static_cast<int32_t>(all.size());
    }
    members.clear();
  }
}

template <bool half>
void normalise_rows(const int64_t* begin, int64_t r0, int64_t r1, float* value) {
  for (int64_t i = r0; i < r1; ++i) {
    const float sum = pairwise_sum(value + begin[i], begin[i + 1] - begin[i]);
    for (int64_t e = begin[i]; e < begin[i + 1]; ++e) value[e] = stored<half>(value[e] / sum);
  }
}

template <bool half>
void combine_rows(SparseRows v, int64_t n, Lists lists, int64_t k, const float* weight, int64_t r0, int64_t r1, SparseOut out) {
  Accumulator sums(n);
  for (int64_t i = r0; i < r1; ++i) {
    for (int64_t j = 0; j < k; ++j) {
      const int64_t from = lists.index[i * lists.length + j], begin = v.begin[from];
      const float w = weight ? weight[i * k + j] : 1.0f;
      for (int64_t e = begin; e < begin + v.count[from]; ++e) sums.at(v.column[e]) += w * v.value[e];
    }
    std::vector<int32_t>& columns = sums.touched();
    std::sort(columns.begin(), columns.end());
    out.count[i] = static_cast<int32_t>(columns.size());
    double square = 0;
    for (int32_t c : columns) square += static_cast<double>(sums.at(c)) * sums.at(c);
    const float length = weight ? static_cast<float>(square > 0 ? std::sqrt(square) : 1) : static_cast<float>(k);
    int64_t e = out.begin[i];
    for (int32_t c : columns) {
      out.column[e] = c;
      out.value[e++] = stored<half>(sums.at(c) / length);
    }
    sums.clear();
  }
}

void invert_rows(SparseRows v, int64_t first, int64_t n, int64_t columns, int64_t* begin, int32_t* row, float* value) {
  std::fill(begin, begin + columns + 1, int64_t{0});
  auto each = [&](auto body) {
    for (int64_t i = first; i < n; ++i) {
      for (int64_t e = v.begin[i]; e < v.begin[i] + v.count[i]; ++e) body(i, e);
    }
  };
  each([&](int64_t, int64_t e) { ++begin[v.column[e] + 1]; });
  for (int64_t c = 0; c < columns; ++c) begin[c + 1] += begin[c];
  std::vector<int64_t> next(begin, begin + columns);
  each([&](int64_t i, int64_t e) {
    const int64_t at = next[v.column[e]]++;
    row[at] = static_cast<int32_t>(i - first);
    value[at] = v.value[e];
  });
}

template <bool half>
void jaccard_rows(SparseRows v, Inverted gallery, Blend blend, const float* most, int64_t first, int64_t r0, int64_t r1,
                  float* dist) {
  Accumulator sums(gallery.rows);
  for (int64_t r = r0; r < r1; ++r) {
    float* row = dist + r * gallery.rows;
    each_shared(v, first + r, gallery, sums, [](float sum, float a, float b) { return overlap<half>(sum, a, b); });
    const float largest = most[first + r];
    for (int32_t g : sums.touched()) sums.at(g) = blended<half>(sums.at(g), share_of(row[g], largest), blend);
    VIFAST_DISPATCH(blend_row, row, gallery.rows, largest, blend);
    for (int32_t g : sums.touched()) row[g] = sums.at(g);
    sums.clear();
  }
}

void dot_rows(SparseRows v, Inverted gallery, int64_t first, int64_t r0, int64_t r1, float* dist) {
  Accumulator sums(gallery.rows);
  for (int64_t r = r0; r < r1; ++r) {
    float* row = dist + r * gallery.rows;
    each_shared(v, first + r, gallery, sums, [](float sum, float a, float b) { return sum + a * b; });
    std::fill(row, row + gallery.rows, 1.0f);
    for (int32_t g : sums.touched()) row[g] = 1.0f - sums.at(g);
    sums.clear();
  }
}

template void normalise_rows<false>(const int64_t*, int64_t, int64_t, float*);
template void normalise_rows<true>(const int64_t*, int64_t, int64_t, float*);
template void combine_rows<false>(SparseRows, int64_t, Lists, int64_t, const float*, int64_t, int64_t, SparseOut);
template void combine_rows<true>(SparseRows, int64_t, Lists, int64_t, const float*, int64_t, int64_t, SparseOut);
template void jaccard_rows<false>(SparseRows, Inverted, Blend, const float*, int64_t, int64_t, int64_t, float*);
template void jaccard_rows<true>(SparseRows, Inverted, Blend, const float*, int64_t, int64_t, int64_t, float*);

}  // namespace vifast
