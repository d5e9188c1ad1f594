// Products of few rows (decode): each weight is read once, straight into registers, and used for up
// to 32 rows. The floor is the weights' bytes over the memory's bandwidth, so all that matters is
// that enough loads are in flight: 128 bytes a lane, 16 KiB a block, four blocks and more on a
// multiprocessor.
#include "model/cuda/gemm_common.cuh"
#include "model/cuda/gemm_kernels.h"
#include "model/cuda/launch.cuh"

namespace agentd::model::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kRows = 64;  // of weights

template <int kTiles>
constexpr int ChunkSteps() {  // of inputs held at once
  return kTiles <= 2 ? 8 : 4;
}
template <int kTiles>
constexpr int
RowStride() {  // of shared inputs: lanes g, t read word g * stride / 2 + t of 32 banks
  return ChunkSteps<kTiles>() * 64 + 8;
}
template <int kTiles>
constexpr int SharedElements() {
  return 2 * 8 * kTiles * RowStride<kTiles>();
}

__device__ __forceinline__ void MultiplyAdd(float (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                                            uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Inputs of a chunk from `step` on into one buffer; columns beyond the matrix become zeros.
template <int kTiles>
__device__ __forceinline__ void LoadInputs(const GemmJob& job, const Work& work, int step,
                                           __nv_bfloat16* buffer) {
  constexpr int kPieces = ChunkSteps<kTiles>() * 8;  // of 16 bytes a row
  for (int i = int(threadIdx.x); i < work.count * kPieces; i += kThreads) {
    const int n = i / kPieces;
    const int piece = i % kPieces;
    const int column = step * 64 + piece * 8;
    const int bytes = max(0, min(16, (job.weight.columns - column) * 2));
    const auto* row = static_cast<const __nv_bfloat16*>(job.x) +
                      int64_t(SourceRow(job, work.first + n)) * job.x_stride;
    CopyAsync16(SharedAddress(buffer + n * RowStride<kTiles>() + piece * 8),
                bytes > 0 ? row + column : row, bytes);
  }
  CopyCommit();
}

template <MatrixType kType>
__device__ __forceinline__ void LoadPiece(const uint8_t* data, const uint8_t* scales, int step,
                                          int lane, Piece<kType>* piece) {
  constexpr int kParts = Piece<kType>::kParts;
#pragma unroll
  for (int p = 0; p < kParts; ++p)
    piece->raw[p] = LoadWeights(data + (int64_t(step) * kParts + p) * 512 + lane * 16);
  piece->LoadScale(scales, step, lane);
}

template <MatrixType kType, int kTiles>
__device__ void Run(const GemmArgs& a, Work work, __nv_bfloat16* shared) {
  constexpr int kChunk = ChunkSteps<kTiles>();
  constexpr int kAhead = Piece<kType>::kAhead < kChunk ? Piece<kType>::kAhead : kChunk;
  constexpr int kBufferElements = 8 * kTiles * RowStride<kTiles>();
  const GemmJob& job = a.jobs[work.job];
  const int lane = int(threadIdx.x) % 32;
  const int columns = job.weight.columns;
  const int steps = DivideUpInt(columns, 64);
  const int m16 = work.m_tile * 4 + int(threadIdx.x) / 32;
  if (job.grouped) {
    GridDependencyWait();
    FindTile(a, &work);
    if (work.job < 0) return;
  }
  const uint8_t* data = static_cast<const uint8_t*>(job.weight.data) +
                        work.expert * job.expert_data +
                        int64_t(m16) * steps * Piece<kType>::kParts * 512;
  const uint8_t* scales = job.weight.scales + work.expert * job.expert_scales +
                          int64_t(m16) * ScaleRowBytes<kType>(columns);
  Piece<kType> pieces[kAhead];
#pragma unroll
  for (int i = 0; i < kAhead; ++i) {
    if (work.step_begin + i < work.step_end)
      LoadPiece<kType>(data, scales, work.step_begin + i, lane, &pieces[i]);
  }
  if (!job.grouped) GridDependencyWait();

  LoadInputs<kTiles>(job, work, work.step_begin, shared);
  float sums[kTiles][4] = {};
  int buffer = 0;
  for (int chunk = work.step_begin; chunk < work.step_end; chunk += kChunk, buffer ^= 1) {
    CopyWait<0>();
    __syncthreads();
    if (chunk + kChunk < work.step_end)
      LoadInputs<kTiles>(job, work, chunk + kChunk, shared + (buffer ^ 1) * kBufferElements);
    const __nv_bfloat16* inputs =
        shared + buffer * kBufferElements + lane / 4 * RowStride<kTiles>() + lane % 4 * 2;
    const int last = min(chunk + kChunk, work.step_end);
    for (int base = chunk; base < last; base += kAhead, inputs += kAhead * 64) {
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        const int step = base + i;
        if (step >= last) break;
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          uint32_t fragment[4];
          pieces[i].Fragment(j, fragment);
#pragma unroll
          for (int n = 0; n < kTiles; ++n) {
            const auto* b = reinterpret_cast<const uint32_t*>(inputs + n * 8 * RowStride<kTiles>() +
                                                              i * 64 + j * 16);
            MultiplyAdd(sums[n], fragment, b[0], b[4]);
          }
        }
        if (step + kAhead < work.step_end)
          LoadPiece<kType>(data, scales, step + kAhead, lane, &pieces[i]);
      }
    }
  }

  float* y = job.y + work.slice * job.plane_stride;
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int row = n * 8 + lane % 4 * 2 + e % 2;
      const int m = m16 * 16 + lane / 4 + e / 2 * 8;
      if (row < work.count && m < job.weight.rows)
        y[int64_t(work.first + row) * job.y_stride + m] = sums[n][e] * job.weight.factor;
    }
  }
}

template <int kTiles>
__global__ void __launch_bounds__(kThreads, kTiles == 1   ? 6
                                            : kTiles == 2 ? 5
                                                          : 4)
    FewRowsKernel(const __grid_constant__ GemmArgs a) {
  extern __shared__ __align__(16) __nv_bfloat16 shared[];
  GridDependencyLaunch();
  const Work work = FindWork(a, kRows, 8 * kTiles);
  if (work.job < 0) return;
  // Rows of the tile that do not exist count as zeros.
  for (int i = int(threadIdx.x); i < SharedElements<kTiles>() / 8; i += kThreads)
    reinterpret_cast<uint4*>(shared)[i] = make_uint4(0, 0, 0, 0);
  __syncthreads();
  switch (a.jobs[work.job].weight.type) {
    case MatrixType::kBf16:
      return Run<MatrixType::kBf16, kTiles>(a, work, shared);
    case MatrixType::kFp8:
      return Run<MatrixType::kFp8, kTiles>(a, work, shared);
    case MatrixType::kFp4:
      return Run<MatrixType::kFp4, kTiles>(a, work, shared);
    case MatrixType::kF32:
      return;
  }
}

template <int kTiles>
void Start(const GemmArgs& args, dim3 grid, cudaStream_t stream) {
  constexpr size_t kBytes = SharedElements<kTiles>() * sizeof(__nv_bfloat16);
  static const bool allowed = [] {
    AllowSharedBytes(FewRowsKernel<kTiles>, kBytes);
    return true;
  }();
  (void)allowed;
  Launch(FewRowsKernel<kTiles>, grid, dim3(kThreads), kBytes, stream, args);
}

}  // namespace

void GemmFewRows(const GemmArgs& args, int tile, int tile_limit, cudaStream_t stream) {
  unsigned units = 0;
  for (int i = 0; i < args.job_count; ++i) {
    const Matrix& w = args.jobs[i].weight;
    units += unsigned(DivideUpInt(w.rows, kRows) * w.slices);
  }
  const dim3 grid(units, unsigned(tile_limit));
  if (tile == 8) return Start<1>(args, grid, stream);
  if (tile == 16) return Start<2>(args, grid, stream);
  Start<4>(args, grid, stream);
}

}  // namespace agentd::model::cuda
