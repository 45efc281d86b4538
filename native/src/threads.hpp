// A fixed team of threads. Work is split by index, never by timing, so results do not depend on it.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace tg {

class Team {
 public:
  explicit Team(unsigned threads);  // the caller is one of them
  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;
  ~Team();

  // Runs work(0 … count - 1). While another request uses the team, the caller works alone.
  void run(std::size_t count, const std::function<void(std::size_t)>& work);

 private:
  void serve(const std::stop_token& stop);
  void drain();

  std::mutex busy_;  // held by the request that uses the team
  std::mutex mutex_;
  std::condition_variable_any wake_;
  std::condition_variable done_;
  const std::function<void(std::size_t)>* work_ = nullptr;
  std::size_t count_ = 0, active_ = 0;
  unsigned long generation_ = 0;
  std::atomic<std::size_t> next_{0};
  std::exception_ptr error_;
  std::vector<std::jthread> threads_;
};

}  // namespace tg
