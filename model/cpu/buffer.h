// Memory for numbers: 64-byte aligned, not initialised, grows without keeping what it held.
#ifndef AGENTD_MODEL_CPU_BUFFER_H_
#define AGENTD_MODEL_CPU_BUFFER_H_

#include <cstddef>
#include <cstdlib>
#include <memory>
#include <string>

#include "base/status.h"

namespace agentd::model {

template <typename T>
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(size_t size) { Reserve(size); }

  // At least `size` elements; contents are lost when it grows.
  T* Reserve(size_t size) {
    if (size > size_) {
      data_.reset();
      const size_t bytes = (size * sizeof(T) + 63) / 64 * 64;
      data_.reset(static_cast<T*>(std::aligned_alloc(64, bytes)));
      if (data_ == nullptr) [[unlikely]]
        internal::CheckFailed(__FILE__, __LINE__, "memory of size", std::to_string(bytes));
      size_ = size;
    }
    return data_.get();
  }

  T* data() { return data_.get(); }
  const T* data() const { return data_.get(); }
  size_t size() const { return size_; }
  T& operator[](size_t i) { return data_.get()[i]; }
  const T& operator[](size_t i) const { return data_.get()[i]; }

 private:
  struct Free {
    void operator()(T* pointer) const { std::free(pointer); }
  };
  std::unique_ptr<T, Free> data_;
  size_t size_ = 0;
};

}  // namespace agentd::model

#endif  // AGENTD_MODEL_CPU_BUFFER_H_
