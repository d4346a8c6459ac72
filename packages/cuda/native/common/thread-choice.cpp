#include "thread-choice.h"

#include <algorithm>

#include "threads.h"

namespace ckpt {
namespace {

// Twice, since one try may have been disturbed.
constexpr uint32_t kTries = 2;
// Less is over before it says anything.
constexpr uint64_t kTryBytes = 128ull << 20;

std::vector<uint32_t> parts_of(uint32_t all) {
  std::vector<uint32_t> parts;
  for (uint32_t part : {all / 2, all, all / 4}) {
    part = std::max(part, 1u);
    if (std::find(parts.begin(), parts.end(), part) == parts.end()) parts.push_back(part);
  }
  return parts;
}

}  // namespace

ThreadChoice::ThreadChoice(uint32_t limit) : ThreadChoice(parts_of(usable_threads(limit))) {}

ThreadChoice::ThreadChoice(std::vector<uint32_t> candidates) {
  for (const uint32_t threads : candidates) candidates_.push_back({threads});
}

uint32_t ThreadChoice::next(uint64_t bytes) {
  std::lock_guard lock(mutex_);
  if (bytes < kTryBytes) return fastest().threads;
  const auto fewer = [](const Candidate& a, const Candidate& b) { return a.begun < b.begun; };
  Candidate& least = *std::min_element(candidates_.begin(), candidates_.end(), fewer);
  if (least.begun >= kTries) return fastest().threads;
  least.begun++;
  return least.threads;
}

void ThreadChoice::note(uint32_t threads, uint64_t bytes, double seconds) {
  if (bytes < kTryBytes || seconds <= 0) return;
  std::lock_guard lock(mutex_);
  for (Candidate& candidate : candidates_) {
    if (candidate.threads != threads) continue;
    candidate.best_rate = std::max(candidate.best_rate, static_cast<double>(bytes) / seconds);
  }
}

// The first one as long as nothing is known.
const ThreadChoice::Candidate& ThreadChoice::fastest() const {
  const auto slower = [](const Candidate& a, const Candidate& b) {
    return a.best_rate < b.best_rate;
  };
  return *std::max_element(candidates_.begin(), candidates_.end(), slower);
}

}  // namespace ckpt
