#include "model/cuda/emulator/runtime.h"

#include <cstdint>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <vector>

#include "base/status.h"
#include "model/cuda/emulator/grid.h"
#include "model/cuda/emulator/memory.h"

namespace emulator = agentd::model::cuda::emulator;
using Work = std::function<void()>;

// What the toolkit's header leaves open.
struct CUgraph_st {
  std::vector<Work> work;
};
struct CUgraphExec_st {
  std::vector<Work> work;
};
struct CUstream_st {
  std::deque<Work> work;
  uint64_t done = 0;  // works before those in the queue
  CUgraph_st* capture = nullptr;
};
// All that was in a stream when it was recorded.
struct CUevent_st {
  CUstream_st* stream = nullptr;
  uint64_t works = 0;
};

namespace {

constexpr int kMultiprocessors = 5;  // so that blocks get several units of work
// More than what an engine keeps for sequences.
constexpr size_t kMemoryBytes = size_t{16} << 30;
constexpr size_t kSharedWithoutAsking = 48 << 10;
constexpr size_t kMostShared = 227 << 10;

struct Device {
  std::recursive_mutex mutex;
  CUstream_st default_stream;
  std::set<CUstream_st*> streams;
  std::map<const void*, size_t> most_shared;  // of kernels that asked for more
  size_t used = 0;
  std::map<void*, size_t> bytes;

  static Device& Get() {
    static auto* device = new Device;
    return *device;
  }
};

thread_local cudaError_t last_error = cudaSuccess;

cudaError_t Result(cudaError_t error) {
  if (error != cudaSuccess) last_error = error;
  return error;
}

CUstream_st* Of(cudaStream_t stream) {
  return stream != nullptr ? stream : &Device::Get().default_stream;
}

cudaError_t Enqueue(cudaStream_t stream, Work work) {
  CUstream_st* s = Of(stream);
  if (s->capture != nullptr) {
    s->capture->work.push_back(std::move(work));
  } else {
    s->work.push_back(std::move(work));
  }
  return cudaSuccess;
}

// The stream's first works; all by default.
cudaError_t Drain(CUstream_st* stream, uint64_t works = UINT64_MAX) {
  if (stream->capture != nullptr) return cudaErrorStreamCaptureUnsupported;
  while (!stream->work.empty() && stream->done < works) {
    const Work work = std::move(stream->work.front());
    stream->work.pop_front();
    ++stream->done;
    work();
  }
  return cudaSuccess;
}

// One that is destroyed was drained.
cudaError_t DrainTo(const CUevent_st& event) {
  Device& device = Device::Get();
  if (event.stream != &device.default_stream && !device.streams.contains(event.stream))
    return cudaSuccess;
  return Drain(event.stream, event.works);
}

cudaError_t DrainAll() {
  Device& device = Device::Get();
  cudaError_t error = Drain(&device.default_stream);
  for (CUstream_st* stream : device.streams) {
    if (stream->capture == nullptr && error == cudaSuccess) error = Drain(stream);
  }
  return error;
}

// Rows of a copy.
struct Rows {
  uint8_t* to;
  size_t to_pitch;
  const uint8_t* from;
  size_t from_pitch;
  size_t width;
  size_t height;

  size_t ToBytes() const { return height == 0 ? 0 : (height - 1) * to_pitch + width; }
  size_t FromBytes() const { return height == 0 ? 0 : (height - 1) * from_pitch + width; }
  void Copy() const {
    for (size_t row = 0; row < height; ++row)
      std::memmove(to + row * to_pitch, from + row * from_pitch, width);
  }
};

bool Fits(cudaMemcpyKind kind, emulator::Place to, emulator::Place from) {
  const bool to_device = to == emulator::Place::kDevice;
  const bool from_device = from == emulator::Place::kDevice;
  switch (kind) {
    case cudaMemcpyHostToHost:
      return !to_device && !from_device;
    case cudaMemcpyHostToDevice:
      return to_device && !from_device;
    case cudaMemcpyDeviceToHost:
      return !to_device && from_device;
    case cudaMemcpyDeviceToDevice:
      return to_device && from_device;
    default:
      return true;
  }
}

// Pageable memory is read at once and written before the call returns; other memory when the stream
// comes to it.
cudaError_t CopyLater(Rows rows, cudaMemcpyKind kind, cudaStream_t stream) {
  if (rows.width == 0 || rows.height == 0) return cudaSuccess;
  const emulator::Place to = emulator::PlaceOf(rows.to, rows.ToBytes());
  const emulator::Place from = emulator::PlaceOf(rows.from, rows.FromBytes());
  if (!Fits(kind, to, from)) return cudaErrorInvalidValue;
  if (Of(stream)->capture == nullptr) {
    if (to == emulator::Place::kPageable) {
      const cudaError_t error = Drain(Of(stream));
      if (error == cudaSuccess) rows.Copy();
      return error;
    }
    if (from == emulator::Place::kPageable) {
      auto staged = std::make_shared<std::vector<uint8_t>>(rows.from, rows.from + rows.FromBytes());
      rows.from = staged->data();
      return Enqueue(stream, [rows, staged] { rows.Copy(); });
    }
    if (to == emulator::Place::kPinned) {
      for (size_t row = 0; row < rows.height; ++row)
        std::memset(rows.to + row * rows.to_pitch, emulator::kPoison, rows.width);
    }
  }
  return Enqueue(stream, [rows] { rows.Copy(); });
}

std::unique_lock<std::recursive_mutex> Lock() {
  return std::unique_lock<std::recursive_mutex>(Device::Get().mutex);
}

int ClusterOf(const cudaLaunchConfig_t& config) {
  for (unsigned i = 0; i < config.numAttrs; ++i) {
    if (config.attrs[i].id == cudaLaunchAttributeClusterDimension)
      return int(config.attrs[i].val.clusterDim.x);
  }
  return 1;
}

}  // namespace

cudaError_t emulator::EnqueueKernel(const cudaLaunchConfig_t& config, const void* kernel,
                                    std::function<void()> body) {
  const auto lock = Lock();
  const dim3 grid = config.gridDim;
  const dim3 block = config.blockDim;
  if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.y > 65535 || grid.z > 65535 ||
      block.x == 0 || block.x > 1024)
    return Result(cudaErrorInvalidConfiguration);
  const auto asked = Device::Get().most_shared.find(kernel);
  if (config.dynamicSmemBytes >
      (asked == Device::Get().most_shared.end() ? kSharedWithoutAsking : asked->second))
    return Result(cudaErrorInvalidValue);
  const Launch launch = {.grid = grid,
                         .block = block,
                         .cluster = ClusterOf(config),
                         .shared_bytes = config.dynamicSmemBytes,
                         .kernel = kernel,
                         .body = std::move(body)};
  return Result(Enqueue(config.stream, [launch] { Run(launch); }));
}

extern "C" {

cudaError_t cudaGetLastError() {
  const cudaError_t error = last_error;
  last_error = cudaSuccess;
  return error;
}
const char* cudaGetErrorName(cudaError_t error) {
  return error == cudaSuccess ? "cudaSuccess" : "error of the emulated device";
}
const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "no error";
    case cudaErrorMemoryAllocation:
      return "out of memory";
    case cudaErrorInvalidConfiguration:
      return "invalid configuration argument";
    case cudaErrorInvalidValue:
      return "invalid argument";
    default:
      return "an error of the emulated device";
  }
}

cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}
cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int) {
  *properties = {};
  std::strcpy(properties->name, "emulated device");
  properties->major = 9;
  properties->minor = 0;
  properties->totalGlobalMem = kMemoryBytes;
  properties->multiProcessorCount = kMultiprocessors;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  if (attribute != cudaDevAttrMultiProcessorCount) return Result(cudaErrorInvalidValue);
  *value = kMultiprocessors;
  return cudaSuccess;
}
cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  const auto lock = Lock();
  *total = kMemoryBytes;
  *free = kMemoryBytes - Device::Get().used;
  return cudaSuccess;
}
cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value) {
  const auto lock = Lock();
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize || value < 0 ||
      size_t(value) > kMostShared)
    return Result(cudaErrorInvalidValue);
  Device::Get().most_shared[kernel] = size_t(value);
  return cudaSuccess;
}

cudaError_t cudaMalloc(void** memory, size_t bytes) {
  const auto lock = Lock();
  Device& device = Device::Get();
  *memory = bytes <= kMemoryBytes - device.used ? emulator::AllocateDevice(bytes) : nullptr;
  if (*memory == nullptr) return Result(cudaErrorMemoryAllocation);
  device.used += bytes;
  device.bytes[*memory] = bytes;
  return cudaSuccess;
}
cudaError_t cudaFree(void* memory) {
  const auto lock = Lock();
  if (memory == nullptr) return cudaSuccess;
  DrainAll();
  if (!emulator::FreeDevice(memory)) return Result(cudaErrorInvalidValue);
  Device::Get().used -= Device::Get().bytes[memory];
  Device::Get().bytes.erase(memory);
  return cudaSuccess;
}
cudaError_t cudaMallocHost(void** memory, size_t bytes) {
  const auto lock = Lock();
  *memory = emulator::AllocatePinned(bytes);
  return *memory != nullptr ? cudaSuccess : Result(cudaErrorMemoryAllocation);
}
cudaError_t cudaFreeHost(void* memory) {
  const auto lock = Lock();
  DrainAll();
  return memory == nullptr || emulator::FreePinned(memory) ? cudaSuccess
                                                           : Result(cudaErrorInvalidValue);
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream) {
  const auto lock = Lock();
  return Result(CopyLater(
      {static_cast<uint8_t*>(to), bytes, static_cast<const uint8_t*>(from), bytes, bytes, 1}, kind,
      stream));
}
cudaError_t cudaMemcpy2DAsync(void* to, size_t to_pitch, const void* from, size_t from_pitch,
                              size_t width, size_t height, cudaMemcpyKind kind,
                              cudaStream_t stream) {
  const auto lock = Lock();
  return Result(CopyLater({static_cast<uint8_t*>(to), to_pitch, static_cast<const uint8_t*>(from),
                           from_pitch, width, height},
                          kind, stream));
}
// In the default stream, which waits for no other that this project makes.
cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
  const auto lock = Lock();
  const cudaError_t error = cudaMemcpyAsync(to, from, bytes, kind, nullptr);
  return error != cudaSuccess ? error : Result(Drain(&Device::Get().default_stream));
}
cudaError_t cudaMemsetAsync(void* memory, int value, size_t bytes, cudaStream_t stream) {
  const auto lock = Lock();
  if (bytes == 0) return cudaSuccess;
  if (emulator::PlaceOf(memory, bytes) == emulator::Place::kPageable)
    return Result(cudaErrorInvalidValue);
  return Result(Enqueue(stream, [=] { std::memset(memory, value, bytes); }));
}
cudaError_t cudaMemset(void* memory, int value, size_t bytes) {
  return cudaMemsetAsync(memory, value, bytes, nullptr);
}

cudaError_t cudaDeviceSynchronize() {
  const auto lock = Lock();
  return Result(DrainAll());
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) {
  const auto lock = Lock();
  if (flags != cudaStreamNonBlocking) return Result(cudaErrorInvalidValue);
  *stream = new CUstream_st;
  Device::Get().streams.insert(*stream);
  return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  const auto lock = Lock();
  const cudaError_t error = Drain(stream);
  Device::Get().streams.erase(stream);
  delete stream;
  return Result(error);
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  const auto lock = Lock();
  return Result(Drain(Of(stream)));
}

// Time stands still.
cudaError_t cudaEventCreate(cudaEvent_t* event) {
  *event = new CUevent_st;
  return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event;
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  const auto lock = Lock();
  *event = {Of(stream), Of(stream)->done + Of(stream)->work.size()};
  return cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  const auto lock = Lock();
  return Result(DrainTo(*event));
}
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  const auto lock = Lock();
  return Result(Enqueue(stream, [at = *event] { static_cast<void>(DrainTo(at)); }));
}
cudaError_t cudaEventElapsedTime(float* ms, cudaEvent_t, cudaEvent_t) {
  *ms = 1;
  return cudaSuccess;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  const auto lock = Lock();
  if (stream == nullptr || stream->capture != nullptr)
    return Result(cudaErrorStreamCaptureUnsupported);
  stream->capture = new CUgraph_st;
  return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  const auto lock = Lock();
  *graph = stream->capture;
  stream->capture = nullptr;
  return *graph != nullptr ? cudaSuccess : Result(cudaErrorStreamCaptureUnmatched);
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* executable, cudaGraph_t graph,
                                 unsigned long long) {
  *executable = new CUgraphExec_st{graph->work};
  return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete graph;
  return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) {
  const auto lock = Lock();
  DrainAll();
  delete executable;
  return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t stream) {
  const auto lock = Lock();
  for (const Work& work : executable->work) Enqueue(stream, work);
  return cudaSuccess;
}

}  // extern "C"
