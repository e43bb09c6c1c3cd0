#include "../augment.h"

#include "half-inl.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace vifast::VIFAST_ISA {

namespace {

#if defined(__AVX512F__)
using Line = __m512i;
inline void stream(Line* to, Line line) { _mm512_stream_si512(to, line); }
#elif defined(__AVX2__)
using Line = __m256i;
inline void stream(Line* to, Line line) { _mm256_stream_si256(to, line); }
#elif defined(__x86_64__)
using Line = __m128i;
inline void stream(Line* to, Line line) { _mm_stream_si128(to, line); }
#endif

// What was stored past the caches is there for other threads.
inline void fence() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

enum Stage : int32_t { kRaw, kNormalized, kErased };
constexpr int32_t kOne = 65536, kGray = 3;

int64_t clamp(int64_t v, int64_t low, int64_t high) { return v < low ? low : v > high ? high : v; }

// a * b + c rounded once; the product and the sum of what occurs here are exact in double.
inline float fused(float a, float b, float c) {
#if defined(__FMA__) || defined(__aarch64__)
  return __builtin_fmaf(a, b, c);
#else
  return static_cast<float>(static_cast<double>(a) * b + c);
#endif
}

// A record with every column in its range, and boxes as [begin, end) within the image.
struct Span {
  int64_t begin, end;
};

struct Area {
  Span rows, columns;
  Area(AugmentBox box, int64_t height, int64_t width)
      : rows{clamp(box.top, 0, height), clamp(int64_t{box.top} + box.height, 0, height)},
        columns{clamp(box.left, 0, width), clamp(int64_t{box.left} + box.width, 0, width)} {}
  Span at(int64_t y) const { return y >= rows.begin && y < rows.end && columns.begin < columns.end ? columns : Span{0, 0}; }
};

struct Image {
  const AugmentRecord& record;
  const AugmentRecord& partner_record;
  int64_t partner;
  float weight;
  int64_t source[3], stage;
  bool outside;
  Area mix, color, erase;
  Image(const AugmentBatch& b, int64_t i)
      : record(b.records[i]), partner_record(b.records[clamp(i + record.partner, 0, b.n - 1)]),
        partner(clamp(i + record.partner, 0, b.n - 1)), weight(static_cast<float>(clamp(record.weight, 0, kOne))),
        source{clamp(record.source[0], 0, kGray), clamp(record.source[1], 0, kGray), clamp(record.source[2], 0, kGray)},
        stage(clamp(record.stage, kRaw, kErased)), outside(record.outside >= 1), mix(record.mix, b.height, b.width),
        color(record.color, b.height, b.width), erase(record.erase, b.height, b.width) {}
};

// Row y of the window into an image, as three planes of bytes; `spare` holds as much.
void window(const AugmentBatch& b, int64_t image, const AugmentRecord& r, int64_t y, uint8_t* planes, uint8_t* spare) {
  const int64_t w = b.width, row = y + r.dy, dx = r.dx;
  const bool flip = r.flip >= 1, exists = row >= 0 && row < b.height && dx > -w && dx < w;
  // Column m shows m + dx.
  const int64_t begin = exists ? clamp(-dx, 0, w) : 0, end = exists ? clamp(w - dx, begin, w) : 0;
  uint8_t* to = flip ? spare : planes;
  uint8_t *__restrict red = to, *__restrict green = to + w, *__restrict blue = to + 2 * w;
  const uint8_t* __restrict from = b.images + 3 * (image * b.height + (exists ? row : 0)) * w;
#pragma omp simd
  for (int64_t m = begin; m < end; ++m) {
    red[m] = from[3 * (m + dx)];
    green[m] = from[3 * (m + dx) + 1];
    blue[m] = from[3 * (m + dx) + 2];
  }
  for (int64_t c = 0; c < 3 && end - begin < w; ++c) {
    std::memset(to + c * w, b.pad, begin);
    std::memset(to + c * w + end, b.pad, w - end);
  }
  if (!flip) return;
  for (int64_t c = 0; c < 3; ++c) {
    const uint8_t* __restrict last = spare + (c + 1) * w - 1;
    uint8_t* __restrict plane = planes + c * w;
#pragma omp simd
    for (int64_t x = 0; x < w; ++x) plane[x] = last[-x];
  }
}

// The columns of a row, colored or not, in normalised units.
template <class In>
void normalize(const AugmentConstants& k, const Image& image, const In* in, int64_t w, Span part, bool colored, float* out) {
  for (int64_t c = 0; c < 3; ++c) {
    float* __restrict to = out + c * w;
    const int64_t source = colored ? image.source[c] : c, unit = colored && image.stage == kRaw ? c : source;
    if (source < kGray) {
      const In* __restrict from = in + source * w;
      const float scale = k.scale[unit], shift = k.shift[unit];
#pragma omp simd
      for (int64_t x = part.begin; x < part.end; ++x) to[x] = fused(static_cast<float>(from[x]), scale, shift);
      continue;
    }
    float weight[3];
    for (int64_t i = 0; i < 3; ++i) weight[i] = k.luminance[i] * k.scale[image.stage == kRaw ? c : i];
    const float shift = image.stage == kRaw ? k.shift[c] : k.gray_shift;
    const In *__restrict red = in, *__restrict green = in + w, *__restrict blue = in + 2 * w;
#pragma omp simd
    for (int64_t x = part.begin; x < part.end; ++x) {
      to[x] = fused(static_cast<float>(blue[x]), weight[2],
                    fused(static_cast<float>(green[x]), weight[1], fused(static_cast<float>(red[x]), weight[0], shift)));
    }
  }
}

// A row after all steps. Between the borders of the color box and of the erase box every column is treated alike.
template <class In>
void finish(const AugmentConstants& k, const Image& image, int64_t y, const In* in, int64_t w, float* out) {
  const Span box = image.color.at(y), erase = image.erase.at(y);
  const Span parts[] = {{0, box.begin}, box, {box.end, w}};
  for (int p = 0; p < 3; ++p) {
    if (parts[p].begin == parts[p].end) continue;
    const bool colored = (p == 1) != image.outside;
    normalize(k, image, in, w, parts[p], colored, out);
    const int64_t begin = clamp(erase.begin, parts[p].begin, parts[p].end), end = clamp(erase.end, begin, parts[p].end);
    for (int64_t c = 0; c < 3 && begin < end; ++c) {
      const float fill = k.fill[colored && image.stage == kErased ? image.source[c] : c];
      for (int64_t x = begin; x < end; ++x) out[c * w + x] = fill;
    }
  }
}

// Own row and partner's, as planes of whole multiples of 1 / 65536, which float32 holds.
void blend(const Image& image, Span box, const uint8_t* own, const uint8_t* partner, int64_t w, float* mixed) {
  for (int64_t c = 0; c < 3; ++c) {
    const uint8_t *__restrict u = own + c * w, *__restrict v = partner + c * w;
    float* __restrict to = mixed + c * w;
#pragma omp simd
    for (int64_t x = 0; x < w; ++x) to[x] = u[x];
    const float a = image.weight, rest = kOne - a;
#pragma omp simd
    for (int64_t x = box.begin; x < box.end; ++x) to[x] = (a * u[x] + rest * v[x]) * (1.0f / kOne);
  }
}

// Copies a piece of the result. Past the caches where it is long: then the lines need not be read first.
void put(void* to, const void* from, int64_t bytes, bool past_caches) {
  int64_t i = 0;
#if defined(__x86_64__)
  if (past_caches && reinterpret_cast<uintptr_t>(to) % sizeof(Line) == 0) {
    for (; i + static_cast<int64_t>(sizeof(Line)) <= bytes; i += sizeof(Line)) {
      Line line;
      std::memcpy(&line, static_cast<const char*>(from) + i, sizeof(line));
      stream(reinterpret_cast<Line*>(static_cast<char*>(to) + i), line);
    }
  }
#endif
  std::memcpy(static_cast<char*>(to) + i, static_cast<const char*>(from) + i, bytes - i);
}

template <class F>
void store_row(const AugmentBatch& b, int64_t image, int64_t y, const float* __restrict row, void* buffer) {
  using Stored = typename F::Stored;
  const int64_t w = b.width;
  Stored* to = static_cast<Stored*>(b.out.data) + image * 3 * b.out.positions;
  Stored* __restrict packed = static_cast<Stored*>(buffer);
  if (b.out.channels_last) {
#pragma omp simd
    for (int64_t x = 0; x < w; ++x) {
      packed[3 * x] = F::write(row[x]);
      packed[3 * x + 1] = F::write(row[w + x]);
      packed[3 * x + 2] = F::write(row[2 * w + x]);
    }
    return put(to + 3 * y * w, packed, 3 * w * sizeof(Stored), b.past_caches);
  }
  const void* planes = row;
  if constexpr (sizeof(Stored) < sizeof(float)) {
#pragma omp simd
    for (int64_t x = 0; x < 3 * w; ++x) packed[x] = F::write(row[x]);
    planes = packed;
  }
  const int64_t bytes = w * sizeof(Stored);
  for (int64_t c = 0; c < 3; ++c) put(to + c * b.out.positions + y * w, static_cast<const char*>(planes) + c * bytes, bytes, b.past_caches);
}

}  // namespace

void augment_rows(const AugmentBatch& b, int64_t begin, int64_t end, float* buffer) {
  const int64_t w = b.width;
  float *row = buffer, *mixed = buffer + 3 * w;  // mixed is free again when a row is stored
  auto* own = reinterpret_cast<uint8_t*>(buffer + 6 * w);
  uint8_t *partner = own + 3 * w, *spare = partner + 3 * w;
  for (int64_t i = begin / b.height; i * b.height < end; ++i) {
    const Image image(b, i);
    const int64_t first = begin - i * b.height, last = end - i * b.height;
    for (int64_t y = first > 0 ? first : 0; y < (last < b.height ? last : b.height); ++y) {
      window(b, i, image.record, y, own, spare);
      const Span mix = image.mix.at(y);
      if (mix.begin < mix.end) {
        window(b, image.partner, image.partner_record, y, partner, spare);
        blend(image, mix, own, partner, w, mixed);
        finish(b.constants, image, y, mixed, w, row);
      } else {
        finish(b.constants, image, y, own, w, row);
      }
      switch (b.out.kind) {
        case Float::f32: store_row<Single>(b, i, y, row, mixed); break;
        case Float::f16: store_row<Float16>(b, i, y, row, mixed); break;
        case Float::bf16: store_row<BFloat16>(b, i, y, row, mixed); break;
      }
    }
  }
  fence();
}

}  // namespace vifast::VIFAST_ISA
