#include "thread-choice.h"

#include <algorithm>

#include "threads.h"

namespace ckpt {
namespace {

// Twice, since one try may have been disturbed.
constexpr uint32_t kTries = 2;
// One work of so many is a try of the number that was not tried for longest.
constexpr uint64_t kTryAgain = 32;

std::vector<uint32_t> parts_of(uint32_t all) {
  std::vector<uint32_t> parts;
  for (uint32_t part : {all / 2, all, all / 4}) {
    part = std::max(part, 1u);
    if (std::find(parts.begin(), parts.end(), part) == parts.end()) parts.push_back(part);
  }
  return parts;
}

}  // namespace

ThreadChoice::ThreadChoice(uint32_t limit, uint64_t try_bytes)
    : ThreadChoice(parts_of(usable_threads(limit)), try_bytes) {}

ThreadChoice::ThreadChoice(std::vector<uint32_t> candidates, uint64_t try_bytes)
    : try_bytes_(try_bytes) {
  for (const uint32_t threads : candidates) candidates_.push_back({threads});
}

uint32_t ThreadChoice::next(uint64_t bytes) {
  std::lock_guard lock(mutex_);
  if (bytes < try_bytes_) return fastest().threads;
  works_++;
  const auto fewer = [](const Candidate& a, const Candidate& b) { return a.tries < b.tries; };
  const Candidate& least = *std::min_element(candidates_.begin(), candidates_.end(), fewer);
  if (least.tries < kTries) return least.threads;
  if (works_ % kTryAgain != 0) return fastest().threads;
  const auto earlier = [](const Candidate& a, const Candidate& b) {
    return a.last_try < b.last_try;
  };
  return std::min_element(candidates_.begin(), candidates_.end(), earlier)->threads;
}

void ThreadChoice::note(uint32_t threads, uint64_t bytes, double seconds) {
  if (bytes < try_bytes_ || seconds <= 0) return;
  std::lock_guard lock(mutex_);
  for (Candidate& candidate : candidates_) {
    if (candidate.threads != threads) continue;
    candidate.rates[candidate.tries % 2] = static_cast<double>(bytes) / seconds;
    candidate.tries++;
    candidate.last_try = works_;
  }
}

// The first one as long as nothing is known.
const ThreadChoice::Candidate& ThreadChoice::fastest() const {
  const auto slower = [](const Candidate& a, const Candidate& b) { return a.rate() < b.rate(); };
  return *std::max_element(candidates_.begin(), candidates_.end(), slower);
}

}  // namespace ckpt
