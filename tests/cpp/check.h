// The test harness: a TEST registers itself, a CHECK counts, main says what failed.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <random>
#include <vector>

#include "isa.h"

class Test {
 public:
  Test(const char* name, void (*run)()) : name_(name), run_(run) { all().push_back(*this); }

  void execute() const {
    checks_failed() = 0;
    run_();
    if (checks_failed() == 0) return;
    ++failed();
    std::printf("%s: %d checks failed\n", name_, checks_failed());
  }

  static std::vector<Test>& all() {
    static std::vector<Test> tests;
    return tests;
  }
  static int& failed() {
    static int tests = 0;
    return tests;
  }
  static int& checks_failed() {
    static int checks = 0;
    return checks;
  }

 private:
  const char* name_;
  void (*run_)();
};

#define TEST(name)                            \
  static void name();                         \
  static const Test name##_test(#name, name); \
  static void name()

#define CHECK(condition)                                                                                 \
  do {                                                                                                   \
    if (!(condition)) {                                                                                  \
      ++Test::checks_failed();                                                                           \
      std::printf("%s:%d [%s]: %s\n", __FILE__, __LINE__, vifast::isa_name(vifast::isa()), #condition);  \
    }                                                                                                    \
  } while (0)

inline bool near(double a, double b, double relative = 1e-5, double absolute = 1e-6) {
  return std::fabs(a - b) <= absolute + relative * std::fabs(b);
}

// Calls body once per instruction set of this processor.
template <class Body>
void each_isa(Body body) {
  const vifast::Isa best = vifast::isa();
  for (vifast::Isa level : {vifast::Isa::scalar, vifast::Isa::avx2, vifast::Isa::avx512}) {
    if (vifast::set_isa(level)) body();
  }
  vifast::set_isa(best);
}

// Rows of identities around centers, as features are.
struct Set {
  int64_t n, d;
  std::vector<float> x, sq;
  std::vector<int32_t> labels;
  Set(int64_t n, int64_t d, int identities, unsigned seed) : n(n), d(d), x(n * d), sq(n), labels(n) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    std::vector<float> centers(identities * d);
    for (float& c : centers) c = normal(random);
    for (int64_t i = 0; i < n; ++i) {
      labels[i] = static_cast<int32_t>(random() % identities);
      for (int64_t k = 0; k < d; ++k) x[i * d + k] = centers[labels[i] * d + k] + 0.7f * normal(random);
    }
    renorm();
  }
  const float* row(int64_t i) const { return x.data() + i * d; }
  void copy_row(int64_t from, int64_t to) {
    for (int64_t k = 0; k < d; ++k) x[to * d + k] = x[from * d + k];
    renorm();
  }
  void renorm() {
    for (int64_t i = 0; i < n; ++i) sq[i] = static_cast<float>(dot(i, *this, i));
  }
  double dot(int64_t i, const Set& other, int64_t j) const {
    double sum = 0;
    for (int64_t k = 0; k < d; ++k) sum += static_cast<double>(row(i)[k]) * other.row(j)[k];
    return sum;
  }
  double sqdist(int64_t i, const Set& other, int64_t j) const {
    double sum = 0;
    for (int64_t k = 0; k < d; ++k) {
      const double t = static_cast<double>(row(i)[k]) - other.row(j)[k];
      sum += t * t;
    }
    return sum;
  }
};

// tile[r, c] = rows[r0 + r] . cols[c0 + c], as a float32 product.
inline std::vector<float> products(const Set& rows, int64_t r0, int64_t r1, const Set& cols, int64_t c0, int64_t c1) {
  std::vector<float> tile;
  tile.reserve((r1 - r0) * (c1 - c0));
  for (int64_t r = r0; r < r1; ++r) {
    for (int64_t c = c0; c < c1; ++c) tile.push_back(static_cast<float>(rows.dot(r, cols, c)));
  }
  return tile;
}
