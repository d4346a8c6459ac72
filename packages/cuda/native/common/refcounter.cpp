#include "refcounter.h"

#include <algorithm>

namespace ckpt {

Refcounter::Refcounter() {
  constexpr uint64_t bytes = kHeaderBytes + kCounters * sizeof(int64_t);
  require_memory("reference counters", bytes, available_shared_bytes());
  memory_.reset(SharedMemory::create(bytes));
  populate(memory_->address(), bytes, true, 1);
  int64_t* words = static_cast<int64_t*>(memory_->address());
  words[0] = 1;
  std::fill_n(words + kHeaderBytes / sizeof(int64_t), kCounters, 1);
}

}  // namespace ckpt
