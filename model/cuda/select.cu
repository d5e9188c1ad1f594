// The lightning indexer's scores, the exact top-k, and which selected entries are not resident.
#include <algorithm>

#include "model/cuda/attention.h"
#include "model/cuda/launch.cuh"
#include "model/cuda/tensor.cuh"
#include "model/numeric.h"

namespace agentd::model::cuda {
namespace {

constexpr int kRatio = 4;      // tokens of a CSA entry
constexpr int kPageKeys = 64;  // of one layer in a page
// Ranks of as many rows at a time as stay in the L2.
constexpr int64_t kRankBytes = 32 << 20;

// Scores are stored as ranks: unsigned numbers that order as the scores do, -0 as 0. Of BF16 scores
// (low) 16 bits.
__device__ uint32_t Rank32(float score) {
  const uint32_t bits = __float_as_uint(score + 0.0f);
  return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}
__device__ uint16_t Rank16(float score) {
  uint32_t bits = FloatToBf16(score);
  if (bits == 0x8000u) bits = 0;
  return static_cast<uint16_t>((bits & 0x8000u) != 0 ? ~bits : bits | 0x8000u);
}

__device__ int VisibleEntries(const SelectArgs& a, int row) {
  return (a.batch.positions[row] + 1) / kRatio;
}

// The published shape: 64 heads of 128 channels in 4 bits, on tensor cores. Each warp takes pages
// of 64 keys by itself, 16 keys by 8 heads in a product. Products run over channels in an order in
// which nothing needs to move between lanes: lane 4g + t has channels [32t, 32t + 32) of keys g and
// g + 8 (one scale each), and a word of eight codes falls into the pairs (j, j + 4) by shifts
// alone; queries are arranged alike, once. What comes out has keys in rows and pairs of heads in
// lanes, as a product's left side has them: the sum over heads is one more product, with ones.
constexpr int kHeads = 64;
constexpr int kChannels = 128;
constexpr int kKeyBytes = 68;
constexpr int kKeyPage = kPageKeys * kKeyBytes;
constexpr int kWarps = 8;
constexpr int kStages = 3;
// 32 channels of a query and 16 bytes more: so that 8 lanes' loads of 16 bytes meet in no bank.
constexpr int kQueryBlock = 80;

struct ScoreShared {
  alignas(16) uint8_t query[kHeads * 4 * kQueryBlock];
  alignas(16) uint8_t pages[kWarps][kStages][kKeyPage];
};

// Codes j and j + 4 of a word of eight E2M1, as the low bits of exponent and mantissa: 2^-126 too
// small.
template <int kPair>
__device__ inline uint32_t SmallPair(uint32_t codes) {
  constexpr int kShift = 6 - 4 * kPair;
  const uint32_t magnitude =
      kShift >= 0 ? codes << (kShift >= 0 ? kShift : 0) : codes >> (kShift >= 0 ? 0 : -kShift);
  return ((codes << (12 - 4 * kPair)) & 0x80008000u) | (magnitude & 0x01C001C0u);
}

// Keys g and g + 8, from `key` on, exact: [words of 8 channels, 2 products each].
__device__ inline void DecodeKeys(const uint8_t* key, int t, uint32_t (&keys)[8][4]) {
  const uint32_t bytes[2] = {key[64 + t], key[8 * kKeyBytes + 64 + t]};
  // 2^126 times the scale in one product where that is a number, else one after the other.
  const bool large = __any_sync(0xFFFFFFFFu, max(bytes[0], bytes[1]) > 128) != 0;
  uint32_t scales[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) scales[i] = large ? 0x7E807E80u : (bytes[i] + 126) * 0x00800080u;
#pragma unroll
  for (int word = 0; word < 4; ++word) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const uint32_t codes =
          *reinterpret_cast<const uint32_t*>(key + 8 * kKeyBytes * i + 16 * t + 4 * word);
      keys[2 * word][i] = MultiplyBf16(SmallPair<0>(codes), scales[i]);
      keys[2 * word][2 + i] = MultiplyBf16(SmallPair<1>(codes), scales[i]);
      keys[2 * word + 1][i] = MultiplyBf16(SmallPair<2>(codes), scales[i]);
      keys[2 * word + 1][2 + i] = MultiplyBf16(SmallPair<3>(codes), scales[i]);
    }
  }
  if (!large) return;
#pragma unroll
  for (int i = 0; i < 32; ++i)
    keys[i / 4][i % 4] = MultiplyBf16(keys[i / 4][i % 4], ScalePair(bytes[i % 2]));
}

__global__ void __launch_bounds__(32 * kWarps, 1)
    ScorePages(const __grid_constant__ SelectArgs a, int first_row, int64_t stride,
               uint16_t* ranks) {
  GridDependencyLaunch();
  GridDependencyWait();
  const int row = first_row + blockIdx.y;
  const int visible = VisibleEntries(a, row);
  if (visible <= a.topk) return;
  const int pages = (visible + kPageKeys - 1) / kPageKeys;
  // Few rows take all blocks there are; of many, each takes blocks that pay for their queries.
  const int blocks =
      gridDim.y < 16 ? gridDim.x : min(int(gridDim.x), (pages + 4 * kWarps - 1) / (4 * kWarps));
  if (int(blockIdx.x) >= min(blocks, (pages + kWarps - 1) / kWarps)) return;

  auto* shared = SharedMemory<ScoreShared>();
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const int g = lane / 4;
  const int t = lane % 4;
  uint8_t* const* index_pages = a.batch.segments[a.batch.segment_of[row]].index_pages;
  const int64_t offset = int64_t(a.number) * kKeyPage;
  const int step = blocks * kWarps;
  int page = blockIdx.x * kWarps + warp;

  auto address = [&](int p) { return p < pages ? index_pages[p] + offset : nullptr; };
  auto fetch = [&](const uint8_t* from, int stage) {
    if (from != nullptr) {
      for (int i = lane; i < kKeyPage / 16; i += 32)
        CopyAsync(shared->pages[warp][stage] + 16 * i, from + 16 * i);
    }
    CopyAsyncCommit();  // of nothing too: the count of groups is what is waited for
  };
  fetch(address(page), 0);
  fetch(address(page + step), 1);
  const uint8_t* ahead = address(page + 2 * step);

  const auto* q = static_cast<const uint16_t*>(a.q) + int64_t(row) * kHeads * kChannels;
  for (int i = threadIdx.x; i < kHeads * 16; i += 32 * kWarps) {
    const int head = i / 16;
    const int piece = i % 16;  // 8 channels
    *reinterpret_cast<uint4*>(shared->query + (head * 4 + piece / 4) * kQueryBlock +
                              piece % 4 * 16) =
        *reinterpret_cast<const uint4*>(q + head * kChannels + piece * 8);
  }
  __syncthreads();
  uint32_t query[8][8][2];  // [8 heads][16 channels]
  uint32_t weight[8];
#pragma unroll
  for (int m = 0; m < 8; ++m) {
#pragma unroll
    for (int word = 0; word < 4; ++word) {
      const uint4 x = *reinterpret_cast<const uint4*>(
          shared->query + ((8 * m + g) * 4 + t) * kQueryBlock + 16 * word);
      query[m][2 * word][0] = __byte_perm(x.x, x.z, 0x5410);      // channels 0, 4
      query[m][2 * word][1] = __byte_perm(x.x, x.z, 0x7632);      // 1, 5
      query[m][2 * word + 1][0] = __byte_perm(x.y, x.w, 0x5410);  // 2, 6
      query[m][2 * word + 1][1] = __byte_perm(x.y, x.w, 0x7632);  // 3, 7
    }
    const float2 w =
        *reinterpret_cast<const float2*>(a.weights + int64_t(row) * kHeads + 8 * m + 2 * t);
    weight[m] = PackBf16(w.x, w.y);
  }

  uint16_t* out = ranks + int64_t(blockIdx.y) * stride;
  for (int stage = 0; page < pages; page += step, stage = (stage + 1) % kStages) {
    fetch(ahead, (stage + 2) % kStages);
    ahead = address(page + 3 * step);
    CopyAsyncWait<2>();
    __syncwarp();
    const uint8_t* key = shared->pages[warp][stage] + g * kKeyBytes;
    float scores[2] = {0, 0};  // of keys 16t + g and 8 further on
#pragma unroll 1
    for (int sixteen = 0; sixteen < 4; ++sixteen) {
      uint32_t keys[8][4];
      DecodeKeys(key + 16 * sixteen * kKeyBytes, t, keys);
      float sums[4] = {};
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float dots[4][4] = {};
#pragma unroll
        for (int k = 0; k < 8; ++k) {
#pragma unroll
          for (int m = 0; m < 4; ++m)
            MultiplyAdd(dots[m], keys[k], query[4 * half + m][k][0], query[4 * half + m][k][1]);
        }
#pragma unroll
        for (int pair = 0; pair < 2; ++pair) {
          uint32_t terms[4];
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const int m = 2 * pair + i / 2;
            terms[i] = MultiplyBf16(PackReluBf16(dots[m][i % 2 * 2], dots[m][i % 2 * 2 + 1]),
                                    weight[4 * half + m]);
          }
          MultiplyAdd(sums, terms, 0x3F803F80u, 0x3F803F80u);  // every column alike
        }
      }
      if (t == sixteen) {
        scores[0] = sums[0];
        scores[1] = sums[2];
      }
    }
    uint16_t* to = out + int64_t(page) * kPageKeys + 16 * t + g;
    to[0] = Rank16(scores[0]);
    to[8] = Rank16(scores[1]);
    __syncwarp();  // before the stage is filled again
  }
}

// Every other shape, and float: a thread per key.
__global__ void __launch_bounds__(kPageKeys)
    ScorePlain(const __grid_constant__ SelectArgs a, int first_row, int64_t stride, void* ranks) {
  GridDependencyLaunch();
  GridDependencyWait();
  const int row = first_row + blockIdx.y;
  const int visible = VisibleEntries(a, row);
  const int64_t entry = int64_t(blockIdx.x) * kPageKeys + threadIdx.x;
  if (visible <= a.topk || entry >= visible) return;
  const bool low = a.state.low;
  const int channels = a.state.index_channels;
  const SegmentView& segment = a.batch.segments[a.batch.segment_of[row]];
  const uint8_t* key = IndexKeyAt(a.state, segment, a.number, entry);
  float* values = SharedMemory<float>() + threadIdx.x * (channels + 1);
  for (int i = 0; i < channels; ++i) {
    if (low) {
      values[i] = E2M1ToFloat(static_cast<uint8_t>(key[i / 2] >> (i % 2 * 4) & 15)) *
                  E8M0ToFloat(key[channels / 2 + i / 32]);
    } else {
      values[i] = reinterpret_cast<const float*>(key)[i];
    }
  }
  float total = 0;
  for (int head = 0; head < a.heads; ++head) {
    const int64_t at = (int64_t(row) * a.heads + head) * channels;
    float dot = 0;
    for (int i = 0; i < channels; ++i) {
      dot += (low ? Bf16ToFloat(static_cast<const uint16_t*>(a.q)[at + i])
                  : static_cast<const float*>(a.q)[at + i]) *
             values[i];
    }
    if (low) dot = RoundBf16(dot);
    const float term = max(dot, 0.0f) * a.weights[int64_t(row) * a.heads + head];
    total += low ? RoundBf16(term) : term;
  }
  const int64_t at = blockIdx.y * stride + entry;
  if (low) {
    static_cast<uint16_t*>(ranks)[at] = Rank16(total);
  } else {
    static_cast<uint32_t*>(ranks)[at] = Rank32(total);
  }
}

// The top-k of a row by a cluster of blocks, each of which has a consecutive part of the ranks:
// radix selection of the k-th rank, eight bits at a time, then the chosen in order.
constexpr int kSelectThreads = 1024;
constexpr int kDigits = 256;

struct SelectShared {
  uint32_t histogram[kDigits];  // of this block's part
  uint32_t total[kDigits];      // of all
  uint32_t before[kDigits];     // of the parts before
  uint32_t warp_sums[2][32];
  uint32_t digit;
  uint32_t need;
  uint32_t above;
  uint32_t equal;
};

// By one warp: the digit at which the `need` highest end, how many are needed of it, and how many
// of the parts before lie above it and at it.
__device__ void FindDigit(SelectShared* s, uint32_t need) {
  const int lane = threadIdx.x;
  const int high = kDigits - 1 - 8 * lane;  // this lane's digits: high, high - 1, ..., high - 7
  uint32_t sum = 0;
  for (int i = 0; i < 8; ++i) sum += s->total[high - i];
  uint32_t upto = sum;
  for (int step = 1; step < 32; step *= 2) {
    const uint32_t other = __shfl_up_sync(0xFFFFFFFFu, upto, step);
    if (lane >= step) upto += other;
  }
  if (upto - sum < need && need <= upto) {
    uint32_t left = need - (upto - sum);
    int digit = high;
    while (s->total[digit] < left) left -= s->total[digit--];
    s->digit = digit;
    s->need = left;
  }
  __syncwarp();
  const int digit = int(s->digit);
  uint32_t above = 0;
  for (int i = 0; i < 8; ++i) above += high - i > digit ? s->before[high - i] : 0;
  for (int mask = 16; mask >= 1; mask /= 2) above += __shfl_xor_sync(0xFFFFFFFFu, above, mask);
  if (lane == 0) {
    s->above = above;
    s->equal = s->before[digit];
  }
}

template <typename Rank, int kCluster>
__global__ void __cluster_dims__(kCluster, 1, 1) __launch_bounds__(kSelectThreads)
    SelectBest(const __grid_constant__ SelectArgs a, int first_row, int64_t stride,
               const Rank* ranks) {
  constexpr int kPer = 16 / sizeof(Rank);  // ranks of one load
  constexpr int kStep = kSelectThreads * kPer;
  constexpr int kAhead = 4;  // loads under way
  struct alignas(16) Pack {
    Rank ranks[kPer];
  };
  GridDependencyLaunch();
  GridDependencyWait();
  const int index = blockIdx.x / kCluster;
  const int part = blockIdx.x % kCluster;
  const int tid = threadIdx.x;
  const int row = first_row + index;
  const int n = VisibleEntries(a, row);
  int* selected = a.selected + int64_t(row) * a.topk;
  if (part == 0 && tid == 0) a.selected_count[row] = min(n, a.topk);
  if (n <= a.topk) {
    if (part != 0) return;
    for (int i = tid; i < n; i += kSelectThreads) selected[i] = i;
    return;
  }
  ranks += index * stride;
  const int size = (n + kCluster * kPer - 1) / (kCluster * kPer) * kPer;
  const int begin = min(n, part * size);
  const int end = min(n, begin + size);
  auto* s = SharedMemory<SelectShared>();

  Pack packs[kAhead];
  auto load = [&](int first) {
#pragma unroll
    for (int u = 0; u < kAhead; ++u) {
      if (first + u * kStep < end)
        packs[u] = *reinterpret_cast<const Pack*>(ranks + first + u * kStep);
    }
  };
  const bool held = end - begin <= kAhead * kStep;  // loaded once, they stay
  if (held) load(begin + tid * kPer);

  uint32_t prefix = 0;  // the digits found
  uint32_t need = a.topk;
  uint32_t above = 0;  // of the parts before: ranks above the k-th, ranks equal to it
  uint32_t equal = 0;
  for (int shift = 8 * int(sizeof(Rank)) - 8; shift >= 0; shift -= 8) {
    if (tid < kDigits) s->histogram[tid] = 0;
    __syncthreads();
    for (int first = begin + tid * kPer; first < end; first += kAhead * kStep) {
      if (!held) load(first);
#pragma unroll
      for (int u = 0; u < kAhead; ++u) {
#pragma unroll
        for (int j = 0; j < kPer; ++j) {
          const uint32_t upper = uint32_t{packs[u].ranks[j]} >> shift;
          if (first + u * kStep + j < end && upper >> 8 == prefix)
            atomicAdd(&s->histogram[upper & 255], 1);
        }
      }
    }
    if constexpr (kCluster > 1) {
      ClusterSync();
    } else {
      __syncthreads();
    }
    if (tid < kDigits) {
      uint32_t total = 0;
      uint32_t before = 0;
#pragma unroll
      for (int p = 0; p < kCluster; ++p) {
        const uint32_t count =
            kCluster > 1 ? ClusterLoad(&s->histogram[tid], p) : s->histogram[tid];
        total += count;
        before += p < part ? count : 0;
      }
      s->total[tid] = total;
      s->before[tid] = before;
    }
    // Also: the others have read this block's histogram, before it is cleared and before it ends.
    if constexpr (kCluster > 1) {
      ClusterSync();
    } else {
      __syncthreads();
    }
    if (tid < 32) FindDigit(s, need);
    __syncthreads();
    prefix = prefix << 8 | s->digit;
    need = s->need;
    above += s->above;
    equal = s->equal;
  }

  // `need` of the ranks equal to the k-th are chosen, the first ones. A chosen rank's place is the
  // number of chosen ones before it.
  const int lane = tid % 32;
  const int warp = tid / 32;
  for (int base = begin; base < end; base += kAhead * kStep) {
    if (!held) load(base + tid * kPer);
#pragma unroll
    for (int u = 0; u < kAhead; ++u) {
      if (base + u * kStep >= end) break;  // alike in all threads
      const int i = base + u * kStep + tid * kPer;
      uint32_t higher = 0;  // bit j: rank i + j is above, or equal
      uint32_t same = 0;
#pragma unroll
      for (int j = 0; j < kPer; ++j) {
        const uint32_t rank = packs[u].ranks[j];
        higher |= (i + j < end && rank > prefix ? 1u : 0u) << j;
        same |= (i + j < end && rank == prefix ? 1u : 0u) << j;
      }
      const uint32_t own = __popc(higher) | __popc(same) << 16;  // 8192 at most in a round
      uint32_t upto = own;
      for (int step = 1; step < 32; step *= 2) {
        const uint32_t other = __shfl_up_sync(0xFFFFFFFFu, upto, step);
        if (lane >= step) upto += other;
      }
      if (lane == 31) s->warp_sums[u % 2][warp] = upto;
      __syncthreads();
      const uint32_t warp_sum = s->warp_sums[u % 2][lane];
      uint32_t warps_upto = warp_sum;
      for (int step = 1; step < 32; step *= 2) {
        const uint32_t other = __shfl_up_sync(0xFFFFFFFFu, warps_upto, step);
        if (lane >= step) warps_upto += other;
      }
      const uint32_t all = __shfl_sync(0xFFFFFFFFu, warps_upto, 31);
      const uint32_t before = __shfl_sync(0xFFFFFFFFu, warps_upto - warp_sum, warp) + upto - own;
      uint32_t higher_before = above + (before & 0xFFFFu);
      uint32_t same_before = equal + (before >> 16);
#pragma unroll
      for (int j = 0; j < kPer; ++j) {
        const bool is_higher = (higher >> j & 1) != 0;
        const bool is_same = (same >> j & 1) != 0;
        if (is_higher || (is_same && same_before < need))
          selected[higher_before + min(same_before, need)] = i + j;
        higher_before += is_higher ? 1 : 0;
        same_before += is_same ? 1 : 0;
      }
      above += all & 0xFFFFu;
      equal += all >> 16;
    }
  }
}

__global__ void ClearCount(int* count) {
  GridDependencyLaunch();
  GridDependencyWait();
  *count = 0;
}

__global__ void CollectMissing(const __grid_constant__ SelectArgs a, int2* missing, int limit,
                               int* count) {
  GridDependencyLaunch();
  GridDependencyWait();
  const int row = a.row_begin + blockIdx.x;
  const int number = a.batch.segment_of[row];
  const SegmentView& segment = a.batch.segments[number];
  if (segment.failed) return;
  const int* selected = a.selected + int64_t(row) * a.topk;
  for (int i = threadIdx.x; i < a.selected_count[row]; i += blockDim.x) {
    const int block = selected[i] / kPageKeys;
    if (i > 0 && selected[i - 1] / kPageKeys == block) continue;
    if (CsaPageOf(segment, a.number, selected[i]) != nullptr) continue;
    const int at = atomicAdd(count, 1);
    if (at < limit) missing[at] = make_int2(number, block);
  }
}

// Ranks of a row, as many as whole pages have.
int64_t RankStride(int64_t max_visible) {
  return RoundUp(std::max<int64_t>(max_visible, 1), kPageKeys);
}

template <typename Rank>
void LaunchSelectBest(const SelectArgs& a, int first_row, int rows, int64_t stride,
                      cudaStream_t stream) {
  constexpr int kCluster = 8;
  const auto* ranks = static_cast<const Rank*>(a.scratch);
  const size_t shared = sizeof(SelectShared);
  // A long row is worth a cluster as long as there are SMs left.
  if (a.max_visible > 16384 && rows <= 32) {
    LaunchClusters(kCluster, SelectBest<Rank, kCluster>, dim3(kCluster * rows),
                   dim3(kSelectThreads), shared, stream, a, first_row, stride, ranks);
  } else {
    Launch(SelectBest<Rank, 1>, dim3(rows), dim3(kSelectThreads), shared, stream, a, first_row,
           stride, ranks);
  }
}

}  // namespace

int64_t SelectScratch(int rows, int64_t max_visible, int topk) {
  if (max_visible <= topk) return 0;
  const int64_t row = RankStride(max_visible) * 4;
  return std::min(rows * row, std::max(kRankBytes, row));
}

void Select(const SelectArgs& a, cudaStream_t stream) {
  const StateShape& state = a.state;
  const int64_t stride = RankStride(a.max_visible);
  const bool scored = a.max_visible > a.topk;
  const bool tensor = state.low && state.index_channels == kChannels && a.heads == kHeads &&
                      state.key_bytes == kKeyBytes;
  const int64_t fit = std::clamp<int64_t>(kRankBytes / (stride * (state.low ? 2 : 4)), 1, 32768);
  const int batch = scored ? int(fit) : 1 << 20;
  for (int first = a.row_begin; first < a.row_end; first += batch) {
    const int rows = std::min(batch, a.row_end - first);
    const auto pages = static_cast<int>(stride / kPageKeys);
    if (scored && tensor) {
      RaiseSharedMemory<ScorePages>();
      // As many pages per warp as make one block per SM, but not so many that a long row among
      // short ones has too few blocks; for a few long rows two blocks per SM, one after the other.
      const int64_t per_warp = DivideUp(int64_t(pages) * rows, 132 * kWarps);
      int64_t blocks = DivideUp(pages, std::clamp<int64_t>(per_warp, 1, 8) * kWarps);
      if (per_warp > 8 && rows < 16)
        blocks = std::min(blocks, std::max<int64_t>(DivideUp(pages, 16 * kWarps), 2 * 132 / rows));
      Launch(ScorePages, dim3(blocks, rows), dim3(32 * kWarps), sizeof(ScoreShared), stream, a,
             first, stride, static_cast<uint16_t*>(a.scratch));
    } else if (scored) {
      RaiseSharedMemory<ScorePlain>();
      Launch(ScorePlain, dim3(pages, rows), dim3(kPageKeys),
             size_t(kPageKeys) * (state.index_channels + 1) * sizeof(float), stream, a, first,
             stride, a.scratch);
    }
    if (state.low) {
      LaunchSelectBest<uint16_t>(a, first, rows, stride, stream);
    } else {
      LaunchSelectBest<uint32_t>(a, first, rows, stride, stream);
    }
  }
}

void FindMissing(const SelectArgs& a, int2* missing, int limit, int* count, cudaStream_t stream) {
  Launch(ClearCount, dim3(1), dim3(1), 0, stream, count);
  if (a.row_begin >= a.row_end) return;
  Launch(CollectMissing, dim3(a.row_end - a.row_begin), dim3(256), 0, stream, a, missing, limit,
         count);
}

}  // namespace agentd::model::cuda
