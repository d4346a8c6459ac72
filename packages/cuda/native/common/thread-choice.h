// How many threads a kind of work is fastest with. More are not always faster: threads that populate
// memory wait for each other in the kernel, and machines differ (an H100's host took a GiB in 90 ms
// with 8 threads and in 150 to 250 ms with 16).
#pragma once

#include <chrono>
#include <cstdint>
#include <mutex>
#include <vector>

namespace ckpt {

// Finds it out by doing the work: the first pieces of it try each number of threads, the later ones
// take the one that was the fastest. Also from several threads at once.
class ThreadChoice {
 public:
  // Half as many as the process may use (at most `limit`), all of them, a quarter.
  explicit ThreadChoice(uint32_t limit);
  // The numbers to choose from, the most promising first; at least one.
  explicit ThreadChoice(std::vector<uint32_t> candidates);

  // Calls work(threads), which is done with `bytes`.
  template <class Work>
  void run(uint64_t bytes, const Work& work) {
    const uint32_t threads = next(bytes);
    const auto start = std::chrono::steady_clock::now();
    work(threads);
    const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - start;
    note(threads, bytes, taken.count());
  }

  uint32_t next(uint64_t bytes);
  void note(uint32_t threads, uint64_t bytes, double seconds);

 private:
  struct Candidate {
    uint32_t threads;
    uint32_t begun = 0;
    double best_rate = 0;  // bytes a second
  };
  const Candidate& fastest() const;

  std::mutex mutex_;
  std::vector<Candidate> candidates_;
};

}  // namespace ckpt
