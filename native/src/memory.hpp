// Buffers of 64-bit words, 64-byte aligned, returned to a bounded pool instead of the kernel: fresh
// pages cost as much as a transform.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "arithmetic.hpp"

namespace tg {

class Pool {
 public:
  explicit Pool(std::size_t capacity_words) : capacity_(capacity_words) {}
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;
  ~Pool();

  u64* take(std::size_t words);
  void give(u64* memory, std::size_t words) noexcept;

 private:
  std::mutex mutex_;
  std::map<std::size_t, std::vector<u64*>> free_;
  std::size_t held_ = 0;
  const std::size_t capacity_;
};

// Uninitialised words; moves, never copies by accident.
class Buffer {
 public:
  Buffer() = default;
  Buffer(std::shared_ptr<Pool> pool, std::size_t words)
      : pool_(std::move(pool)), words_(words), data_(pool_->take(words)) {}
  Buffer(Buffer&& other) noexcept { swap(other); }
  Buffer& operator=(Buffer&& other) noexcept {
    Buffer(std::move(other)).swap(*this);
    return *this;
  }
  ~Buffer() {
    if (data_) pool_->give(data_, words_);
  }

  u64* data() { return data_; }
  const u64* data() const { return data_; }
  std::size_t size() const { return words_; }

 private:
  void swap(Buffer& other) noexcept {
    std::swap(pool_, other.pool_);
    std::swap(words_, other.words_);
    std::swap(data_, other.data_);
  }

  std::shared_ptr<Pool> pool_;
  std::size_t words_ = 0;
  u64* data_ = nullptr;
};

}  // namespace tg
