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
// take the one that was the fastest, and now and then one of them tries another again, because
// machines change. Also from several threads at once.
class ThreadChoice {
 public:
  // Half as many as the process may use (at most `limit`), all of them, a quarter.
  // `try_bytes`: less work is over before it says anything.
  explicit ThreadChoice(uint32_t limit, uint64_t try_bytes = kTryBytes);
  // The numbers to choose from, the most promising first; at least one.
  explicit ThreadChoice(std::vector<uint32_t> candidates, uint64_t try_bytes = kTryBytes);

  // Calls work(threads), which is done with `bytes`. What it throws is no try.
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
  static constexpr uint64_t kTryBytes = 128ull << 20;

  struct Candidate {
    uint32_t threads;
    uint32_t tries = 0;
    uint64_t last_try = 0;  // number of the work
    double rates[2] = {};   // the last two, in bytes a second
    double rate() const { return rates[0] > rates[1] ? rates[0] : rates[1]; }
  };
  const Candidate& fastest() const;

  std::mutex mutex_;
  std::vector<Candidate> candidates_;
  const uint64_t try_bytes_;
  uint64_t works_ = 0;  // that were large enough
};

}  // namespace ckpt
