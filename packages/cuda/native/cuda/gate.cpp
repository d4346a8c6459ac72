#include "gate.h"

namespace ckpt {

bool Gate::passes(const std::shared_ptr<CudaStream>& stream) {
  std::lock_guard lock(mutex_);
  if (!open_ && stream) waiting_.push_back(stream);
  return open_;
}

void Gate::open(Wakes& wakes) {
  std::lock_guard lock(mutex_);
  open_ = true;
  for (const auto& waiting : waiting_) {
    if (auto stream = waiting.lock()) wakes.push_back(std::move(stream));
  }
  waiting_.clear();
}

}  // namespace ckpt
