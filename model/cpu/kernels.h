// The engine's inner loops: Highway kernels, dispatched at run time to the best instruction set.
//
// Every function gives the same bits on every target, and for a row whatever other rows are
// computed with it. So: a sum over contiguous numbers runs in 16 virtual lanes (lane i takes
// elements i, i+16, ...) that one fixed tree adds; a product with weights runs in kSlices slices
// (packed_matrix.h); multiply and add are two roundings, except where the product is exact in F32
// (FP8 x FP8, FP4 x FP8, FP8 x BF16, BF16 x BF16), where fused and separate agree.
//
// Pointers need no alignment; buffers must not overlap unless a comment allows it. Sizes may be
// odd.
#ifndef AGENTD_MODEL_CPU_KERNELS_H_
#define AGENTD_MODEL_CPU_KERNELS_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "model/cpu/packed_matrix.h"
#include "model/kv_format.h"

namespace agentd::model {

// y[row][output] = sum over k of weight[output][k] * x[row][k], for the outputs of panels
// [panel_begin, panel_end).
struct LinearArgs {
  const PackedMatrix* weight = nullptr;
  int panel_begin = 0;
  int panel_end = 0;
  const float* x = nullptr;  // [rows, columns]
  size_t x_stride = 0;
  int rows = 0;
  float* y = nullptr;  // [rows, weight->rows]
  size_t y_stride = 0;
  bool exact = false;        // every product is exact in F32
  bool round = false;        // results to BF16
  float* scratch = nullptr;  // LinearScratch(*weight) floats
};
void Linear(const LinearArgs& args);
size_t LinearScratch(const PackedMatrix& weight);  // floats

float SumSquares(const float* x, int n);
// out = x / sqrt(mean(x^2) + eps) * weight. May be in place.
void RmsNorm(const float* x, const float* weight, int n, float eps, bool round, float* out);
// One head of q, in place, without weight. low_precision: BF16 arithmetic throughout (spec section
// 4).
void HeadNorm(float* q, int n, float eps, bool low_precision);
// Per `block` values: scaled by 2^ceil(log2(max(amax, 1e-4) / 448)), rounded to E4M3, scaled back.
// May be in place.
void QuantizeFp8(const float* x, int n, int block, float* out);
void RoundToBf16(float* x, int n);  // in place

// out[d] = sum over streams i of pre[i] * streams[i][d].
void MixIn(const float* streams, int h, int d, const float* pre, bool round, float* out);
// streams[j][d] = post[j] * sub[d] + sum over i of comb[i][j] * streams[i][d], in place. h <= 16.
void MixOut(float* streams, int h, int d, const float* sub, const float* post, const float* comb,
            bool round);
// out = weight * silu(min(gate, limit)) * clamp(up, -limit, limit). May be in place.
void SwiGlu(const float* gate, const float* up, int n, float weight, float limit, bool round,
            float* out);
// out += x.
void Add(const float* x, int n, float* out);

// The running softmax of one pooling block: per channel max, sum of exp(g - max) and sum of exp(g -
// max) * k, `stride` floats apart. Folds one token into n channels, g = gate + ape. `first`: there
// was none before. May be in place (in == out).
void FoldPooling(const float* in, const float* k, const float* gate, const float* ape, int n,
                 size_t stride, bool first, float* out);
// weighted / sum of one state, or of two joined (a == nullptr: b alone).
void FinishPooling(const float* a, const float* b, int n, size_t stride, float* out);

// Attention of some heads of some tokens, each over its window entries and then its compressed
// ones, in the order given, with a sink without value. A token's result does not depend on the
// others; they share the decoding of entries.
struct AttendRow {
  const float* q = nullptr;  // [heads, c], contiguous
  float* out = nullptr;      // [heads, c]
  int window_begin = 0;      // of AttendArgs::window: the first that it sees
  int window_count = 0;
  const uint8_t* const* compressed = nullptr;  // [compressed_count]
  int compressed_count = 0;
};
struct AttendArgs {
  EntryShape shape;
  const uint8_t* const* window = nullptr;  // [window_entries], those of all rows, oldest first
  int window_entries = 0;
  const AttendRow* rows = nullptr;  // each sees one entry at least
  int row_count = 0;
  bool shared = false;  // the rows' compressed entries are beginnings of one list
  int heads = 0;
  float scale = 1;               // c^-0.5
  const float* sinks = nullptr;  // [heads]
  float* scratch = nullptr;      // AttendScratch(*this) floats
};
void Attend(const AttendArgs& args);
size_t AttendScratch(const AttendArgs& args);

// Scores of indexer keys for some tokens: out[row][key] = sum over heads of weight[h] *
// relu(q[h] . key). Low precision: the dot, each term and the sum are rounded to BF16, as in the
// published code; with that the fixture's CSA layers agree with it bit for bit on most tokens.
struct IndexArgs {
  int channels = 0;
  bool low_precision = false;     // keys: 4-bit with scales (kv_format.h), otherwise F32
  const uint8_t* keys = nullptr;  // [count] keys one after another
  int key_bytes = 0;
  int count = 0;
  const float* q = nullptr;  // [rows, heads, channels]
  // Low precision: [rows] times IndexQueryBytes() of PackIndexQueries(q); nullptr if those are 0.
  const uint8_t* packed = nullptr;
  const float* weights = nullptr;  // [rows, heads]
  int rows = 0;
  int heads = 0;
  float* out = nullptr;  // [rows][out_stride]
  size_t out_stride = 0;
  float* scratch = nullptr;  // IndexScratch() floats
};
void IndexScores(const IndexArgs& args);
size_t IndexScratch(int channels);  // floats
// One token's low-precision queries [heads, channels] as bytes to multiply, at a multiple of 4.
void PackIndexQueries(const float* q, int heads, int channels, uint8_t* packed);
size_t IndexQueryBytes(int heads, int channels);  // 0: channels that are not packed

// Of the n scores of entries first, first + 1, ...: the ranks that are `least` or more and whose
// they are, ascending by entry. A rank orders as the scores do, -0 as 0. Returns how many. ranks,
// entries: room for n + 16.
int CollectRanked(const float* scores, int n, int32_t first, int32_t least, int32_t* ranks,
                  int32_t* entries);

// Instruction sets that this machine and this build both have, as Highway's bits, the best first;
// one by name; and forcing one for a test (0: the best again). Not while kernels run.
std::vector<int64_t> SimdTargets();
const char* SimdTargetName();  // of the one that runs now
void ForceSimdTarget(int64_t target);
// For a test: whether byte products (AVX512_VNNI) are used where AVX3 runs and has them.
void AllowVnni(bool allow);

}  // namespace agentd::model

#endif  // AGENTD_MODEL_CPU_KERNELS_H_
