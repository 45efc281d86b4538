#include "memory.hpp"

#include <new>

namespace tg {

namespace {
constexpr std::align_val_t kAlignment{64};
}

Pool::~Pool() {
  for (auto& [words, list] : free_)
    for (u64* memory : list) ::operator delete[](memory, kAlignment);
}

u64* Pool::take(std::size_t words) {
  {
    const std::lock_guard lock(mutex_);
    const auto found = free_.find(words);
    if (found != free_.end() && !found->second.empty()) {
      u64* memory = found->second.back();
      found->second.pop_back();
      held_ -= words;
      return memory;
    }
  }
  return static_cast<u64*>(::operator new[](words * sizeof(u64), kAlignment));
}

void Pool::give(u64* memory, std::size_t words) noexcept {
  try {
    const std::lock_guard lock(mutex_);
    if (held_ + words <= capacity_) {
      free_[words].push_back(memory);
      held_ += words;
      return;
    }
  } catch (...) {  // no memory for the list itself: the buffer is freed below
  }
  ::operator delete[](memory, kAlignment);
}

}  // namespace tg
