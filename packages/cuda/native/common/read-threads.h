// How many threads of a read work at a time.
#pragma once

#include <chrono>
#include <cstdint>

#include "thread-choice.h"

namespace ckpt {

// Between two numbers, as many as turn out the fastest: the first parts of the first large read try
// both, later parts and reads of such files take the better one. Not synchronised: its read does it.
class ReadThreads {
 public:
  // Files of one kind are alike enough for what one read has found out to hold for the next.
  enum class Kind { disk, direct, tmpfs };

  // `most` work at first. Equal numbers: always so many.
  ReadThreads(uint32_t least, uint32_t most, uint64_t bytes, Kind kind);

  bool may_work(uint32_t thread) const noexcept { return thread < working_; }
  // So many bytes more have been read. True: from now on another number may work.
  bool done(uint64_t bytes);

 private:
  using Clock = std::chrono::steady_clock;

  ThreadChoice* choice_ = nullptr;
  uint64_t part_bytes_ = 0;
  uint32_t working_;
  uint64_t done_bytes_ = 0;
  Clock::time_point begin_ = Clock::now();
};

}  // namespace ckpt
