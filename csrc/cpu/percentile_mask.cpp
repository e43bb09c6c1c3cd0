#include "../percentile_mask.h"

#include <algorithm>
#include <iterator>
#include <vector>

namespace vifast {

void percentile_mask(const float* confidence, int64_t n, double q, bool high, float* mask) {
  std::vector<double> ordered;
  ordered.reserve(n);
  std::copy_if(confidence, confidence + n, std::back_inserter(ordered), [](float c) { return c == c; });
  std::sort(ordered.begin(), ordered.end());
  double theta = 0;
  if (!ordered.empty()) {
    const int64_t last = static_cast<int64_t>(ordered.size()) - 1;
    const double position = q * last / 100;
    const int64_t low = static_cast<int64_t>(position);
    const double below = ordered[low], above = ordered[std::min(low + 1, last)];
    theta = below == above ? below : below + (above - below) * (position - low);
  }
  for (int64_t i = 0; i < n; ++i) mask[i] = (high ? confidence[i] >= theta : confidence[i] <= theta) ? 1.0f : 0.0f;
}

}  // namespace vifast
