// Formulas of the specification (sections 3 and 4), in double precision with the C library's
// functions and written from its text alone: they share nothing with the engine, which must agree
// within its own precision. For tests.
#ifndef AGENTD_MODEL_REFERENCE_FORMULAS_H_
#define AGENTD_MODEL_REFERENCE_FORMULAS_H_

#include <vector>

namespace agentd::model::formulas {

using Doubles = std::vector<double>;

// YaRN of the layers with a compressor; original == 0: none.
struct Yarn {
  double factor = 1;
  double original = 0;
  double beta_fast = 32;
  double beta_slow = 1;
};
// [r/2]
Doubles Frequencies(int r, double base, const Yarn& yarn);
// Rotates the last 2 * frequencies.size() channels by position t; by -t: back.
Doubles Rope(Doubles x, const Doubles& frequencies, double t);

struct Mix {
  Doubles pre;   // [h]
  Doubles post;  // [h]
  Doubles comb;  // [h, h]
};
// f [(2 + h) h], already times rsqrt; scale [3]; base [(2 + h) h].
Mix Coefficients(int h, const Doubles& f, const Doubles& scale, const Doubles& base, double eps,
                 int iterations);

// s of every expert: sqrt(softplus(gate)).
Doubles Affinities(const Doubles& gate);
// The k best of s + bias, of equals the lower index, ascending.
std::vector<int> Choose(const Doubles& s, const Doubles& bias, int k);
// Of the chosen: s over their sum, times `factor`.
Doubles Weights(const Doubles& s, const std::vector<int>& chosen, double factor);

// Times the Sylvester matrix / sqrt(n): entry (i, j) is -1 where i and j share an odd number of
// bits.
Doubles Hadamard(const Doubles& x);

}  // namespace agentd::model::formulas

#endif  // AGENTD_MODEL_REFERENCE_FORMULAS_H_
