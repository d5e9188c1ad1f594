// A captured sequence of launches.
#ifndef AGENTD_MODEL_CUDA_GRAPH_H_
#define AGENTD_MODEL_CUDA_GRAPH_H_

#include <cuda_runtime_api.h>

#include <utility>

#include "absl/status/statusor.h"
#include "model/cuda/device.h"

namespace agentd::model::cuda {

// Move-only.
class Graph {
 public:
  Graph() = default;
  ~Graph() {
    if (graph_ != nullptr) cudaGraphExecDestroy(graph_);
  }
  Graph(Graph&& other) noexcept { *this = std::move(other); }
  Graph& operator=(Graph&& other) noexcept {
    std::swap(graph_, other.graph_);
    return *this;
  }

  // What `enqueue` (returning a Status) puts on the stream, which runs nothing meanwhile.
  template <typename Enqueue>
  static absl::StatusOr<Graph> Capture(cudaStream_t stream, const Enqueue& enqueue) {
    absl::Status status = CudaStatus(
        cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "begin a capture");
    if (!status.ok()) return status;
    const absl::Status enqueued = enqueue();
    cudaGraph_t captured = nullptr;
    status = CudaStatus(cudaStreamEndCapture(stream, &captured), "end a capture");
    if (!enqueued.ok()) status = enqueued;
    Graph graph;
    if (status.ok())
      status = CudaStatus(cudaGraphInstantiate(&graph.graph_, captured, 0), "make a graph");
    if (captured != nullptr) cudaGraphDestroy(captured);
    if (!status.ok()) return status;
    return graph;
  }

  absl::Status Launch(cudaStream_t stream) const {
    return CudaStatus(cudaGraphLaunch(graph_, stream), "launch a graph");
  }

 private:
  cudaGraphExec_t graph_ = nullptr;
};

}  // namespace agentd::model::cuda

#endif  // AGENTD_MODEL_CUDA_GRAPH_H_
