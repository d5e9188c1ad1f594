// The k best of a stream of scores.
#ifndef AGENTD_MODEL_CPU_TOP_K_H_
#define AGENTD_MODEL_CPU_TOP_K_H_

#include <cstddef>
#include <cstdint>
#include <vector>

namespace agentd::model {

// Keeps what may be among the k best of the scores seen so far: some hundred candidates and the
// rank that a new one must have. Exact, ties included: of equal scores the lower entry wins. Which
// ranges the entries came in, and by way of which TopK, makes no difference. Used again and again,
// it keeps its memory.
class TopK {
 public:
  // Forgets everything. k is at least 1.
  void Begin(int k);
  // Scores of entries first, first + 1, ..., all later than those before.
  void Add(const float* scores, int n, int64_t first);
  // What another one, of later entries, kept.
  void Add(const TopK& later);
  // The k best, or as many as there were, ascending by entry. Returns how many.
  int Finish(int32_t* selected);

 private:
  void Compact();

  size_t k_ = 0;
  int32_t least_ = 0;  // rank of a score that may still be among the best
  size_t count_ = 0;
  size_t room_ = 0;
  std::vector<int32_t> ranks_;    // of candidates, the first count_ of them, ascending by entry
  std::vector<int32_t> entries_;  // theirs
  std::vector<int32_t> order_;    // scratch
};

}  // namespace agentd::model

#endif  // AGENTD_MODEL_CPU_TOP_K_H_
