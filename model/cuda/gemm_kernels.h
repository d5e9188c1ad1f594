// The product's kernels, by how many rows there are: Gemm() chooses.
#ifndef AGENTD_MODEL_CUDA_GEMM_KERNELS_H_
#define AGENTD_MODEL_CUDA_GEMM_KERNELS_H_

#include "model/cuda/gemm.h"

namespace agentd::model::cuda {

// Tiles of 8, 16 or 32 rows; tile_limit: of grouped jobs at most.
void GemmFewRows(const GemmArgs& args, int tile, int tile_limit, cudaStream_t stream);
// Tiles of up to 128 rows. The same bits as GemmFewRows and adding its planes: there is one plane.
void GemmManyRows(const GemmArgs& args, int tile_limit, cudaStream_t stream);
// Plain F32 arithmetic.
void GemmPlain(const GemmArgs& args, int tile_limit, cudaStream_t stream);

}  // namespace agentd::model::cuda

#endif  // AGENTD_MODEL_CUDA_GEMM_KERNELS_H_
