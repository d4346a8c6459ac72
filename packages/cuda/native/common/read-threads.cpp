#include "read-threads.h"

#include <algorithm>
#include <map>
#include <memory>
#include <mutex>
#include <tuple>

namespace ckpt {
namespace {

// A part is long enough for what was begun before it not to count, and short enough for a wrong
// number not to cost much.
constexpr uint64_t kPartsOfRead = 16;
constexpr uint64_t kPartBytesMin = 128ull << 20;
constexpr uint64_t kPartBytesMax = 512ull << 20;

// Of the process: what one read has found out serves the next one.
ThreadChoice& choice_between(uint32_t least, uint32_t most, ReadThreads::Kind kind) {
  static std::mutex& mutex = *new std::mutex;
  static auto& choices =
      *new std::map<std::tuple<uint32_t, uint32_t, ReadThreads::Kind>, std::unique_ptr<ThreadChoice>>;
  std::lock_guard lock(mutex);
  auto& choice = choices[{least, most, kind}];
  if (choice == nullptr) choice.reset(new ThreadChoice(std::vector<uint32_t>{most, least}));
  return *choice;
}

}  // namespace

ReadThreads::ReadThreads(uint32_t least, uint32_t most, uint64_t bytes, Kind kind)
    : working_(most) {
  if (least >= most) return;
  choice_ = &choice_between(least, most, kind);
  part_bytes_ = std::clamp(bytes / kPartsOfRead, kPartBytesMin, kPartBytesMax);
  working_ = choice_->next(std::min(bytes, part_bytes_));
}

bool ReadThreads::done(uint64_t bytes) {
  if (choice_ == nullptr) return false;
  done_bytes_ += bytes;
  if (done_bytes_ < part_bytes_) return false;
  const auto now = Clock::now();
  choice_->note(working_, done_bytes_, std::chrono::duration<double>(now - begin_).count());
  begin_ = now;
  done_bytes_ = 0;
  const uint32_t before = working_;
  working_ = choice_->next(part_bytes_);
  return working_ != before;
}

}  // namespace ckpt
