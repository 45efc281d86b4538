#include "threads.hpp"

namespace tg {

Team::Team(unsigned threads) {
  for (unsigned i = 1; i < threads; ++i)
    threads_.emplace_back([this](const std::stop_token& stop) { serve(stop); });
}

Team::~Team() {
  for (auto& thread : threads_) thread.request_stop();
  wake_.notify_all();
}

void Team::run(std::size_t count, const std::function<void(std::size_t)>& work) {
  std::unique_lock busy(busy_, std::defer_lock);
  if (threads_.empty() || count < 2 || !busy.try_lock()) {
    for (std::size_t i = 0; i < count; ++i) work(i);
    return;
  }
  {
    const std::lock_guard lock(mutex_);
    work_ = &work;
    count_ = count;
    next_ = 0;
    error_ = nullptr;
    active_ = threads_.size();
    ++generation_;
  }
  wake_.notify_all();
  drain();
  std::unique_lock lock(mutex_);
  done_.wait(lock, [this] { return active_ == 0; });
  work_ = nullptr;
  if (error_) std::rethrow_exception(error_);
}

void Team::drain() {
  try {
    for (std::size_t i; (i = next_.fetch_add(1)) < count_;) (*work_)(i);
  } catch (...) {
    const std::lock_guard lock(mutex_);
    if (!error_) error_ = std::current_exception();
    next_ = count_;
  }
}

void Team::serve(const std::stop_token& stop) {
  unsigned long seen = 0;
  for (;;) {
    {
      std::unique_lock lock(mutex_);
      if (!wake_.wait(lock, stop, [&] { return generation_ != seen; })) return;
      seen = generation_;
    }
    drain();
    const std::lock_guard lock(mutex_);
    if (--active_ == 0) done_.notify_one();
  }
}

}  // namespace tg
