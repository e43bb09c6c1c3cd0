#include "../resize.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace vifast {

namespace {

constexpr double kPi = 3.14159265358979323846;

double sinc(double x) { return x == 0 ? 1 : std::sin(x * kPi) / (x * kPi); }

double filter_at(Filter filter, double x) {
  if (filter == Filter::lanczos) return -3 <= x && x < 3 ? sinc(x) * sinc(x / 3) : 0;
  return std::max(0.0, 1 - std::abs(x));
}

}  // namespace

Taps::Taps(int64_t in, int64_t out, Filter filter) : in(in), out(out), first_(out), count_(out) {
  const double step = static_cast<double>(in) / out, stretch = std::max(step, 1.0);
  const double support = (filter == Filter::lanczos ? 3 : 1) * stretch;
  most_ = static_cast<int64_t>(std::ceil(support)) * 2 + 1;
  weight_.assign(out * most_, 0);
  std::vector<double> share(most_);
  for (int64_t k = 0; k < out; ++k) {
    const double center = (k + 0.5) * step;
    const int64_t low = std::max<int64_t>(0, static_cast<int64_t>(center - support + 0.5));
    const int64_t n = std::min<int64_t>(in, static_cast<int64_t>(center + support + 0.5)) - low;
    double sum = 0;
    for (int64_t t = 0; t < n; ++t) sum += share[t] = filter_at(filter, (t + low - center + 0.5) * (1 / stretch));
    for (int64_t t = 0; t < n; ++t) {
      const double w = (sum != 0 ? share[t] / sum : share[t]) * (1 << 22);
      weight_[k * most_ + t] = static_cast<int32_t>(w < 0 ? w - 0.5 : w + 0.5);
    }
    first_[k] = static_cast<int32_t>(low);
    count_[k] = static_cast<int32_t>(n);
  }
  for (int64_t k = 0; k < out; k += kBlock) {
    const int64_t n = std::min(kBlock, out - k);
    const int32_t taps = *std::max_element(&count_[k], &count_[k] + n);
    const size_t start = block_weight_.size();
    block_taps_.push_back(taps);
    block_weight_.resize(start + kBlock * taps, 0);
    for (int64_t j = 0; j < kBlock; ++j) {
      const int64_t o = k + std::min(j, n - 1);
      const int32_t from = std::min<int32_t>(first_[o], in - taps);  // whose last tap is still inside
      block_offset_.push_back(3 * from);
      for (int32_t t = 0; t < count_[o]; ++t) block_weight_[start + kBlock * (first_[o] - from + t) + j] = weight_[o * most_ + t];
    }
  }
}

int64_t resize_scratch(const Taps& rows, const Taps& columns) { return 3 * rows.in * columns.out + 3 * columns.in + 2 * kSlack; }

void resize(const uint8_t* image, const Taps& rows, const Taps& columns, uint8_t* scratch, uint8_t* out) {
  const int64_t from = 3 * columns.in, to = 3 * columns.out;
  const uint8_t* narrow = image;
  if (columns.in != columns.out) {
    const Blocks blocks = columns.blocks();
    uint8_t* last = scratch + rows.in * to + kSlack;  // the image ends with its last row, and the kernel reads on
    std::memcpy(last, image + (rows.in - 1) * from, from);
    VIFAST_DISPATCH(resize_rows, image, rows.in - 1, from, blocks, scratch);
    VIFAST_DISPATCH(resize_rows, last, 1, from, blocks, scratch + (rows.in - 1) * to);
    narrow = scratch;
  }
  if (rows.in == rows.out) {
    std::memcpy(out, narrow, rows.in * to);
  } else {
    VIFAST_DISPATCH(resize_columns, narrow, to, rows.line(), out);
  }
}

}  // namespace vifast
