#include "../ranking.h"

#include <cmath>

#include "../ranking_inl.h"

namespace vifast::VIFAST_ISA {

namespace {

constexpr int64_t kStep = 64;  // columns tested at once before any of them is looked at

template <class T>
struct Lane;  // an integer as wide as T, so that a compare's mask adds without a conversion
template <>
struct Lane<float> {
  using type = int32_t;
};
template <>
struct Lane<double> {
  using type = int64_t;
};

template <class T>
void mask_row(const T* row, const T* scale, const T* bias, int64_t n, const int32_t* camera, int32_t drop_camera, T* out, bool* bad) {
  typename Lane<T>::type nan = 0;
  if (scale) {
#pragma omp simd reduction(| : nan)
    for (int64_t c = 0; c < n; ++c) {
      out[c] = scale[c] * row[c] + bias[c];
      nan |= out[c] != out[c];
    }
  } else {
#pragma omp simd reduction(| : nan)
    for (int64_t c = 0; c < n; ++c) {
      out[c] = row[c];
      nan |= row[c] != row[c];
    }
  }
  *bad = nan != 0;
  if (drop_camera < 0) return;
#pragma omp simd
  for (int64_t c = 0; c < n; ++c) out[c] = camera[c] == drop_camera ? static_cast<T>(NAN) : out[c];
}

// Columns [start, stop) ahead of four positives, kPassed of which lie before them: only a tie of lower index is ahead.
// Four share each load, and conditions instead of sums let the compiler add under the compare's mask: 1.7 times as fast as
// one by one with AVX-512 (measured).
template <int kPassed, class T>
void count_segment(const T* row, int64_t start, int64_t stop, const T* value, int64_t* count) {
  const T v0 = value[0], v1 = value[1], v2 = value[2], v3 = value[3];
  typename Lane<T>::type s0 = 0, s1 = 0, s2 = 0, s3 = 0;
#pragma omp simd reduction(+ : s0, s1, s2, s3)
  for (int64_t c = start; c < stop; ++c) {
    const T x = row[c];
    if (kPassed > 0 ? x < v0 : x <= v0) ++s0;
    if (kPassed > 1 ? x < v1 : x <= v1) ++s1;
    if (kPassed > 2 ? x < v2 : x <= v2) ++s2;
    if (kPassed > 3 ? x < v3 : x <= v3) ++s3;
  }
  count[0] += s0;
  count[1] += s1;
  count[2] += s2;
  count[3] += s3;
}

template <class T>
void count_ahead(const T* row, int64_t n, const T* value, const int64_t* index, int64_t p, int64_t* count) {
  for (int64_t k = 0; k < p; k += 4) {
    T v[4];
    int64_t at[4], sum[4] = {0, 0, 0, 0};
    for (int64_t i = 0; i < 4; ++i) {
      const int64_t from = k + i < p ? k + i : p - 1;
      v[i] = value[from];
      at[i] = index[from];
    }
    count_segment<0>(row, 0, at[0], v, sum);
    count_segment<1>(row, at[0], at[1], v, sum);
    count_segment<2>(row, at[1], at[2], v, sum);
    count_segment<3>(row, at[2], at[3], v, sum);
    count_segment<4>(row, at[3], n, v, sum);
    for (int64_t i = 0; i < 4 && k + i < p; ++i) count[k + i] += sum[i];
  }
}

// The number of sorted positives ahead of each of the columns [start, start + width), which is at most kStep; p for NaN.
template <class T>
void places(const T* row, int64_t start, int64_t width, const T* value, const int64_t* index, int64_t p,
            typename Lane<T>::type* place) {
  using I = typename Lane<T>::type;
  const T* x = row + start;
  for (int64_t l = 0; l < kStep; ++l) place[l] = 0;
  I left = static_cast<I>(p);  // positives not yet told apart, the same for every column
  while (left > 1) {
    const I half = left / 2;
#pragma omp simd
    for (int64_t l = 0; l < width; ++l) place[l] += value[place[l] + half - 1] < x[l] ? half : 0;
    left -= half;
  }
  I tie = 0;
#pragma omp simd reduction(| : tie)
  for (int64_t l = 0; l < width; ++l) {
    place[l] += value[place[l]] < x[l];
    const I at = place[l] < p ? place[l] : static_cast<I>(p - 1);
    tie |= value[at] == x[l];
    place[l] = x[l] == x[l] ? place[l] : static_cast<I>(p);  // NaN: dropped, ahead of none
  }
  if (!tie) return;
  for (int64_t l = 0; l < width; ++l) {
    while (place[l] < p && ahead(value[place[l]], index[place[l]], x[l], start + l)) ++place[l];
  }
}

template <class T>
void all_places(const T* row, int64_t n, const T* value, const int64_t* index, int64_t p, int32_t* place) {
  typename Lane<T>::type some[kStep];
  for (int64_t start = 0; start < n; start += kStep) {
    const int64_t width = start + kStep < n ? kStep : n - start;
    places(row, start, width, value, index, p, some);
    for (int64_t l = 0; l < width; ++l) place[start + l] = static_cast<int32_t>(some[l]);
  }
}

// Each column's bucket is its place; a prefix sum then counts for all positives at once.
template <class T>
void bucket(const T* row, int64_t n, const T* value, const int64_t* index, int64_t p, int64_t* histogram, int64_t* count) {
  for (int64_t k = 0; k <= p; ++k) histogram[k] = 0;
  typename Lane<T>::type place[kStep];
  for (int64_t start = 0; start < n; start += kStep) {
    const int64_t width = start + kStep < n ? kStep : n - start;
    places(row, start, width, value, index, p, place);
    for (int64_t l = 0; l < width; ++l) ++histogram[place[l]];
  }
  int64_t before = 0;
  for (int64_t k = 0; k < p; ++k) {
    before += histogram[k];
    count[k] += before - 1;  // less the positive itself
  }
}

template <class T>
void identities(const T* row, int64_t n, T value, int64_t index, const int32_t* identity, int64_t stamp, int64_t* seen,
                int64_t limit, int64_t* count, int32_t* out) {
  int64_t found = 0;
  for (int64_t start = 0; start < n && found < limit; start += kStep) {
    const int64_t stop = start + kStep < n ? start + kStep : n;
    typename Lane<T>::type any = 0;
#pragma omp simd reduction(| : any)
    for (int64_t c = start; c < stop; ++c) any |= row[c] <= value;
    if (!any) continue;
    for (int64_t c = start; c < stop; ++c) {
      if (!ahead(row[c], c, value, index) || seen[identity[c]] == stamp) continue;
      seen[identity[c]] = stamp;
      if (out && found < limit) out[found] = identity[c];
      ++found;
    }
  }
  *count = found < limit ? found : limit;
}

}  // namespace

#define VIFAST_RANK_DEFINE(T)                                                                                             \
  void rank_mask_row(const T* row, const T* scale, const T* bias, int64_t n, const int32_t* camera, int32_t drop_camera,  \
                     T* out, bool* bad) {                                                                                 \
    mask_row(row, scale, bias, n, camera, drop_camera, out, bad);                                                         \
  }                                                                                                                       \
  void rank_count(const T* row, int64_t n, const T* value, const int64_t* index, int64_t p, int64_t* count) {             \
    count_ahead(row, n, value, index, p, count);                                                                          \
  }                                                                                                                       \
  void rank_bucket(const T* row, int64_t n, const T* value, const int64_t* index, int64_t p, int64_t* histogram,          \
                   int64_t* count) {                                                                                      \
    bucket(row, n, value, index, p, histogram, count);                                                                    \
  }                                                                                                                       \
  void rank_places(const T* row, int64_t n, const T* value, const int64_t* index, int64_t p, int32_t* place) {            \
    all_places(row, n, value, index, p, place);                                                                           \
  }                                                                                                                       \
  void rank_identities(const T* row, int64_t n, T value, int64_t index, const int32_t* identity, int64_t stamp,           \
                       int64_t* seen, int64_t limit, int64_t* count, int32_t* found) {                                    \
    identities(row, n, value, index, identity, stamp, seen, limit, count, found);                                         \
  }
VIFAST_RANK_DEFINE(float)
VIFAST_RANK_DEFINE(double)

// A column adds its bits, spread over a lane a trial, to the row of its place: one addition for all trials. Columns behind the
// last positive are in no sum. Lanes of 16 bits hold a chunk of columns and are emptied into the histogram after it.
void rank_trial_histogram(const int32_t* place, const int32_t* member, int64_t n, int64_t p, int64_t* histogram) {
  constexpr int64_t kChunk = 65535, kPlaces = 256;
  static const uint16_t bit[kTrials] = {1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768};
  uint16_t lanes[kPlaces * kTrials];
  for (int64_t k0 = 0; k0 < p; k0 += kPlaces) {  // of so many places at a time; a query has seldom more positives
    const int64_t places = k0 + kPlaces < p ? kPlaces : p - k0;
    for (int64_t i = 0; i < places * kTrials; ++i) histogram[k0 * kTrials + i] = 0;
    for (int64_t start = 0; start < n; start += kChunk) {
      const int64_t stop = start + kChunk < n ? start + kChunk : n;
      for (int64_t i = 0; i < places * kTrials; ++i) lanes[i] = 0;
      for (int64_t c = start; c < stop; ++c) {
        const int64_t k = place[c] - k0;
        if (k < 0 || k >= places) continue;
        const uint16_t in = static_cast<uint16_t>(member[c]);
        uint16_t* lane = lanes + k * kTrials;
#pragma omp simd
        for (int64_t t = 0; t < kTrials; ++t) lane[t] = static_cast<uint16_t>(lane[t] + ((in & bit[t]) != 0));
      }
      for (int64_t i = 0; i < places * kTrials; ++i) histogram[k0 * kTrials + i] += lanes[i];
    }
  }
}

}  // namespace vifast::VIFAST_ISA
