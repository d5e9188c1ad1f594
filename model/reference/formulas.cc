#include "model/reference/formulas.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <complex>
#include <numbers>
#include <numeric>

namespace agentd::model::formulas {
namespace {

double Sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

// Divides the h entries from `first`, `step` apart, by their sum + eps.
void Normalize(Doubles* matrix, int h, int first, int step, double eps) {
  double sum = eps;
  for (int i = 0; i < h; ++i) sum += (*matrix)[size_t(first + i * step)];
  for (int i = 0; i < h; ++i) (*matrix)[size_t(first + i * step)] /= sum;
}

}  // namespace

Doubles Frequencies(int r, double base, const Yarn& yarn) {
  Doubles out;
  for (int i = 0; i < r / 2; ++i) {
    const double plain = std::pow(base, -2.0 * i / r);
    if (yarn.original == 0) {
      out.push_back(plain);
      continue;
    }
    auto dim = [&](double n) {
      return r * std::log(yarn.original / (2 * std::numbers::pi * n)) / (2 * std::log(base));
    };
    const double low = std::max(std::floor(dim(yarn.beta_fast)), 0.0);
    double high = std::min(std::ceil(dim(yarn.beta_slow)), r - 1.0);
    if (low == high) high += 0.001;
    const double ramp = std::min(std::max((i - low) / (high - low), 0.0), 1.0);
    out.push_back(plain * (1 - ramp) + plain / yarn.factor * ramp);
  }
  return out;
}

Doubles Rope(Doubles x, const Doubles& frequencies, double t) {
  double* pair = x.data() + x.size() - 2 * frequencies.size();
  for (const double frequency : frequencies) {
    const std::complex<double> turned =
        std::complex<double>(pair[0], pair[1]) * std::polar(1.0, t * frequency);
    pair[0] = turned.real();
    pair[1] = turned.imag();
    pair += 2;
  }
  return x;
}

Mix Coefficients(int h, const Doubles& f, const Doubles& scale, const Doubles& base, double eps,
                 int iterations) {
  Mix mix;
  auto value = [&](int at, int part) {
    return f[size_t(at)] * scale[size_t(part)] + base[size_t(at)];
  };
  for (int i = 0; i < h; ++i) mix.pre.push_back(Sigmoid(value(i, 0)) + eps);
  for (int i = 0; i < h; ++i) mix.post.push_back(2 * Sigmoid(value(h + i, 1)));
  for (int i = 0; i < h; ++i) {
    double sum = 0;
    for (int j = 0; j < h; ++j) sum += std::exp(value(2 * h + i * h + j, 2));
    for (int j = 0; j < h; ++j)
      mix.comb.push_back(std::exp(value(2 * h + i * h + j, 2)) / sum + eps);
  }
  for (int j = 0; j < h; ++j) Normalize(&mix.comb, h, j, h, eps);
  for (int round = 1; round < iterations; ++round) {
    for (int i = 0; i < h; ++i) Normalize(&mix.comb, h, i * h, 1, eps);
    for (int j = 0; j < h; ++j) Normalize(&mix.comb, h, j, h, eps);
  }
  return mix;
}

Doubles Affinities(const Doubles& gate) {
  Doubles s;
  for (const double g : gate) s.push_back(std::sqrt(std::log1p(std::exp(g))));
  return s;
}

std::vector<int> Choose(const Doubles& s, const Doubles& bias, int k) {
  std::vector<int> order(s.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) {
    return s[size_t(a)] + bias[size_t(a)] > s[size_t(b)] + bias[size_t(b)];
  });
  order.resize(size_t(k));
  std::sort(order.begin(), order.end());
  return order;
}

Doubles Weights(const Doubles& s, const std::vector<int>& chosen, double factor) {
  double sum = 0;
  for (const int e : chosen) sum += s[size_t(e)];
  Doubles weights;
  for (const int e : chosen) weights.push_back(s[size_t(e)] / sum * factor);
  return weights;
}

Doubles Hadamard(const Doubles& x) {
  Doubles out(x.size(), 0.0);
  for (size_t i = 0; i < x.size(); ++i) {
    for (size_t j = 0; j < x.size(); ++j) out[i] += std::popcount(i & j) % 2 == 0 ? x[j] : -x[j];
    out[i] /= std::sqrt(double(x.size()));
  }
  return out;
}

}  // namespace agentd::model::formulas
