#include "../prompt_mixture.h"

#include <algorithm>
#include <vector>

#include "../packed_rows.h"
#include "../parallel.h"
#include "../planes.h"
#include "../tensor_view.h"
#include "bind.h"

namespace vifast {

namespace {

template <class T>
T* optional_row(const py::object& tensor, const char* name, int64_t n) {
  return tensor.is_none() ? nullptr : TensorView(tensor, name).data<T>({n});
}

struct RunningNorm {
  float *mean, *var;
  int64_t* tracked;

  void move(int64_t k, double new_mean, double unbiased, double momentum) {
    mean[k] = static_cast<float>(mean[k] + momentum * (new_mean - mean[k]));
    var[k] = static_cast<float>(var[k] + momentum * (unbiased - var[k]));
  }
};

// mean, rstd [B, R]. The first `specific` columns have running statistics of visible (v) and infrared (i), the others those of c; the
// other arguments as in kernels/prompt_mixture.py.
void prompt_statistics(py::object hidden, py::object modality, py::object mean_v, py::object var_v, py::object tracked_v, py::object mean_i,
                       py::object var_i, py::object tracked_i, py::object mean_c, py::object var_c, bool batch, bool instance, double eps,
                       double momentum, py::object mean, py::object rstd, int threads) {
  const TensorView vh(hidden, "hidden");
  const float* ph = vh.data<float>({-1, -1, -1});
  const int64_t samples = vh.size(0), columns = vh.size(1), cells = vh.size(2);
  const int64_t specific = mean_v.is_none() ? 0 : TensorView(mean_v, "mean_v").size(0), common = columns - specific;
  const int64_t* pm = TensorView(modality, "modality").data<int64_t>({samples});
  RunningNorm own[] = {{optional_row<float>(mean_v, "mean_v", specific), optional_row<float>(var_v, "var_v", specific),
                        tracked_v.is_none() ? nullptr : TensorView(tracked_v, "tracked_v").data<int64_t>({})},
                       {optional_row<float>(mean_i, "mean_i", specific), optional_row<float>(var_i, "var_i", specific),
                        tracked_i.is_none() ? nullptr : TensorView(tracked_i, "tracked_i").data<int64_t>({})}};
  RunningNorm shared{optional_row<float>(mean_c, "mean_c", common), optional_row<float>(var_c, "var_c", common), nullptr};
  float *to_mean = TensorView(mean, "mean").data<float>({samples, columns}), *to_rstd = TensorView(rstd, "rstd").data<float>({samples, columns});
  py::gil_scoped_release release;
  std::vector<float> var(samples * columns);
  parallel_for(samples, 4, threads, [&](int64_t b0, int64_t b1) {
    const int64_t row = b0 * columns;
    VIFAST_DISPATCH(plane_stats, ph + row * cells, (b1 - b0) * columns, cells, to_mean + row, var.data() + row);
  });
  std::vector<double> center(columns), spread(columns);
  for (int64_t m = 0; m < 2 && specific > 0; ++m) {
    int64_t count = 0;
    std::fill(center.begin(), center.end(), 0.0);
    std::fill(spread.begin(), spread.end(), 0.0);
    for (int64_t b = 0; b < samples; ++b) {
      if ((pm[b] != 0) != (m == 1)) continue;
      ++count;
      for (int64_t r = 0; r < specific; ++r) center[r] += to_mean[b * columns + r];
    }
    if (count == 0) continue;
    for (int64_t r = 0; r < specific; ++r) center[r] /= static_cast<double>(count);
    for (int64_t b = 0; b < samples; ++b) {
      if ((pm[b] != 0) != (m == 1)) continue;
      for (int64_t r = 0; r < specific; ++r) {
        const double off = to_mean[b * columns + r] - center[r];
        spread[r] += var[b * columns + r] + off * off;
      }
    }
    for (int64_t r = 0; r < specific; ++r) {
      spread[r] /= static_cast<double>(count);
      const double n = static_cast<double>(count * cells);
      if (batch) own[m].move(r, center[r], spread[r] * (n / std::max(n - 1, 1.0)), momentum);
    }
    if (batch) ++*own[m].tracked;
    for (int64_t b = 0; b < samples; ++b) {
      if ((pm[b] != 0) != (m == 1)) continue;
      for (int64_t r = 0; r < specific; ++r) {
        to_mean[b * columns + r] = batch ? static_cast<float>(center[r]) : own[m].mean[r];
        var[b * columns + r] = batch ? static_cast<float>(spread[r]) : own[m].var[r];
      }
    }
  }
  for (int64_t c = 0; c < common; ++c) {
    double total = 0, total_var = 0;
    for (int64_t b = 0; b < samples; ++b) {
      total += to_mean[b * columns + specific + c];
      total_var += var[b * columns + specific + c];
    }
    const double n = static_cast<double>(cells), count = static_cast<double>(std::max<int64_t>(samples, 1));
    if (batch && samples > 0) shared.move(c, total / count, total_var / count * (n / std::max(n - 1, 1.0)), momentum);
    for (int64_t b = 0; b < samples && !instance; ++b) {
      to_mean[b * columns + specific + c] = shared.mean[c];
      var[b * columns + specific + c] = shared.var[c];
    }
  }
  for (int64_t k = 0; k < samples * columns; ++k) to_rstd[k] = static_cast<float>(1 / std::sqrt(var[k] + eps));
}

// The arguments of a mixture, and the planes of one sample.
struct MixtureInputs {
  PromptPlanes planes;  // of the first sample, without its weight and bias
  int64_t samples, packed;
  const int64_t* modality;
  std::vector<float> affine;  // of either modality: weight [R], bias [R]

  PromptPlanes sample(int64_t b) const {
    PromptPlanes of = planes;
    const int64_t columns = of.planes();
    of.hidden += b * columns * of.positions;
    of.mean += b * columns;
    of.rstd += b * columns;
    of.weight = affine.data() + (modality[b] != 0 ? 2 * columns : 0);
    of.bias = of.weight + columns;
    return of;
  }
};

MixtureInputs mixture_inputs(const py::object& hidden, const py::object& modality, const py::object& mean, const py::object& rstd,
                             const py::object& weight, const py::object& bias, const py::object& raw_down, const py::object& raw_up,
                             const py::object& normed_down, const py::object& normed_up) {
  const TensorView vh(hidden, "hidden"), vw(weight, "weight");
  MixtureInputs in;
  PromptPlanes& of = in.planes;
  of.hidden = vh.data<float>({-1, -1, -1});
  in.samples = vh.size(0);
  const int64_t columns = vh.size(1);
  of.positions = vh.size(2);
  const float* pw = vw.data<float>({-1});
  in.packed = vw.size(0);
  const float* pb = TensorView(bias, "bias").data<float>({in.packed});
  of.specific = in.packed - columns;
  of.common = columns - of.specific;
  if (of.specific < 0 || of.common < 0) throw py::value_error("weight: expected one or two for each column of hidden");
  of.mean = TensorView(mean, "mean").data<float>({in.samples, columns});
  of.rstd = TensorView(rstd, "rstd").data<float>({in.samples, columns});
  in.modality = TensorView(modality, "modality").data<int64_t>({in.samples});
  of.gate = of.common > 0 ? TensorView(raw_down, "raw_down").size(0) : 0;
  const auto matrix = [&](const py::object& tensor, const char* name, int64_t rows, int64_t cols) {
    return of.common > 0 ? TensorView(tensor, name).data<float>({rows, cols}) : nullptr;
  };
  of.raw_down = matrix(raw_down, "raw_down", of.gate, of.common);
  of.raw_up = matrix(raw_up, "raw_up", of.common, of.gate);
  of.normed_down = matrix(normed_down, "normed_down", of.gate, of.common);
  of.normed_up = matrix(normed_up, "normed_up", of.common, of.gate);
  in.affine.resize(4 * columns);
  for (int64_t m = 0; m < 2; ++m) {
    for (int64_t r = 0; r < columns; ++r) {
      const int64_t row = r < of.specific ? m * of.specific + r : of.specific + r;
      in.affine[2 * m * columns + r] = pw[row];
      in.affine[(2 * m + 1) * columns + r] = pb[row];
    }
  }
  return in;
}

void prompt_mixture(py::object hidden, py::object modality, py::object mean, py::object rstd, py::object weight, py::object bias,
                    py::object raw_down, py::object raw_up, py::object normed_down, py::object normed_up, py::object out, int threads) {
  const MixtureInputs in = mixture_inputs(hidden, modality, mean, rstd, weight, bias, raw_down, raw_up, normed_down, normed_up);
  const int64_t step = in.planes.planes() * in.planes.positions;
  float* po = TensorView(out, "out").data<float>({in.samples, in.planes.planes(), in.planes.positions});
  py::gil_scoped_release release;
  parallel_for(in.samples, 4, threads, [&](int64_t b0, int64_t b1) {
    const auto scratch = aligned(prompt_scratch(in.planes));
    for (int64_t b = b0; b < b1; ++b) VIFAST_DISPATCH(prompt_mixture_forward, in.sample(b), po + b * step, scratch.get());
  });
}

// grad, to_hidden as hidden; to_weight, to_bias [P]; the gates' gradients as they, or None.
void prompt_mixture_backward(py::object grad, py::object hidden, py::object modality, py::object mean, py::object rstd, py::object weight,
                             py::object bias, py::object raw_down, py::object raw_up, py::object normed_down, py::object normed_up,
                             bool batch, bool instance, py::object to_hidden, py::object to_weight, py::object to_bias,
                             py::object to_raw_down, py::object to_raw_up, py::object to_normed_down, py::object to_normed_up, int threads) {
  const MixtureInputs in = mixture_inputs(hidden, modality, mean, rstd, weight, bias, raw_down, raw_up, normed_down, normed_up);
  const PromptPlanes& of = in.planes;
  const int64_t columns = of.planes(), step = columns * of.positions, size = of.gates();
  const auto sizes = {in.samples, columns, of.positions};
  const float* pg = TensorView(grad, "grad").data<float>(sizes);
  float* out = TensorView(to_hidden, "to_hidden").data<float>(sizes);
  float *out_weight = TensorView(to_weight, "to_weight").data<float>({in.packed}), *out_bias = TensorView(to_bias, "to_bias").data<float>({in.packed});
  float* out_gates[4] = {};
  if (of.common > 0) {
    out_gates[0] = TensorView(to_raw_down, "to_raw_down").data<float>({of.gate, of.common});
    out_gates[1] = TensorView(to_raw_up, "to_raw_up").data<float>({of.common, of.gate});
    out_gates[2] = TensorView(to_normed_down, "to_normed_down").data<float>({of.gate, of.common});
    out_gates[3] = TensorView(to_normed_up, "to_normed_up").data<float>({of.common, of.gate});
  }
  py::gil_scoped_release release;
  std::vector<float> sums(in.samples * columns * 2), gates(in.samples * 4 * size);
  parallel_for(in.samples, 4, threads, [&](int64_t b0, int64_t b1) {
    const auto scratch = aligned(prompt_scratch(of));
    for (int64_t b = b0; b < b1; ++b) {
      VIFAST_DISPATCH(prompt_mixture_backward, in.sample(b), instance, pg + b * step, out + b * step, &sums[b * columns * 2],
                      gates.data() + b * 4 * size, scratch.get());
    }
  });
  std::vector<double> total(in.packed * 2);
  int64_t count[2] = {};
  for (int64_t b = 0; b < in.samples; ++b) {
    const int64_t m = in.modality[b] != 0;
    ++count[m];
    for (int64_t k = 0; k < 2 * columns; ++k) {
      total[k + 2 * (k < 2 * of.specific ? m : 1) * of.specific] += sums[b * columns * 2 + k];
    }
  }
  for (int64_t q = 0; q < in.packed; ++q) {
    out_bias[q] = static_cast<float>(total[2 * q]);
    out_weight[q] = static_cast<float>(total[2 * q + 1]);
  }
  for (int64_t k = 0; k < 4 * size; ++k) {
    double entry = 0;
    for (int64_t b = 0; b < in.samples; ++b) entry += gates[b * 4 * size + k];
    out_gates[k / size][k % size] = static_cast<float>(entry);
  }
  std::vector<float> means(4 * of.specific);
  for (int64_t k = 0; k < 4 * of.specific && batch; ++k) {
    const int64_t n = count[k / (2 * of.specific)] * of.positions;
    means[k] = n > 0 ? static_cast<float>(total[k] / static_cast<double>(n)) : 0.0f;
  }
  parallel_for(in.samples, 4, threads, [&](int64_t b0, int64_t b1) {
    for (int64_t b = b0; b < b1; ++b) {
      const float* of_batch = means.data() + (in.modality[b] != 0 ? 2 * of.specific : 0);
      VIFAST_DISPATCH(prompt_mixture_batch, in.sample(b), of_batch, pg + b * step, out + b * step);
    }
  });
}

}  // namespace

void bind_prompt_mixture(py::module_& m) {
  m.def("prompt_statistics", &prompt_statistics, py::arg("hidden"), py::arg("modality"), py::arg("mean_v"), py::arg("var_v"),
        py::arg("tracked_v"), py::arg("mean_i"), py::arg("var_i"), py::arg("tracked_i"), py::arg("mean_c"), py::arg("var_c"),
        py::arg("batch"), py::arg("instance"), py::arg("eps"), py::arg("momentum"), py::arg("mean"), py::arg("rstd"), py::arg("threads"),
        "What planes are normalised by; running statistics move.");
  m.def("prompt_mixture", &prompt_mixture, py::arg("hidden"), py::arg("modality"), py::arg("mean"), py::arg("rstd"), py::arg("weight"),
        py::arg("bias"), py::arg("raw_down"), py::arg("raw_up"), py::arg("normed_down"), py::arg("normed_up"), py::arg("out"),
        py::arg("threads"), "Normalised and gated planes, see csrc/prompt_mixture.h.");
  m.def("prompt_mixture_backward", &prompt_mixture_backward, py::arg("grad"), py::arg("hidden"), py::arg("modality"), py::arg("mean"),
        py::arg("rstd"), py::arg("weight"), py::arg("bias"), py::arg("raw_down"), py::arg("raw_up"), py::arg("normed_down"),
        py::arg("normed_up"), py::arg("batch"), py::arg("instance"), py::arg("to_hidden"), py::arg("to_weight"), py::arg("to_bias"),
        py::arg("to_raw_down"), py::arg("to_raw_up"), py::arg("to_normed_down"), py::arg("to_normed_up"), py::arg("threads"),
        "Its gradients.");
}

}  // namespace vifast
