// Elementary functions with one defined result everywhere: IEEE add, multiply, divide and square
// root only, no libm (whose last bits differ between machines). Double precision; a few ulp.
#ifndef AGENTD_MODEL_CPU_MATH_H_
#define AGENTD_MODEL_CPU_MATH_H_

#include <vector>

#include "model/config.h"

namespace agentd::model {

double Exp(double x);                                 // 0 below -708, largest finite above 709; NaN of NaN
double Log(double x);                                 // x positive and normal
void SinCos(double x, double* sine, double* cosine);  // |x| <= 2^26

// log(1 + e^x), as the published code computes it: x itself above 20.
float Softplus(float x);
// 1 / (1 + e^-x) in F32 arithmetic throughout.
float Sigmoid(float x);
// F32 e^x: the same arithmetic as the SIMD kernels' exponential, lane for lane.
float ExpF32(float x);

// Rotary frequencies, one for each of the r/2 pairs.
std::vector<double> RopeFrequencies(const Config& config, bool compressed);
// cos and sin of position * frequency, as F32, for each pair.
void RopeTable(const std::vector<double>& frequencies, double position, float* cosine, float* sine);

}  // namespace agentd::model

#endif  // AGENTD_MODEL_CPU_MATH_H_
