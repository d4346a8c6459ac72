// Reads of peers on their way into device memory: the network brings them into pinned host memory,
// from where the device takes them. So nothing is asked of network card and driver but what they do
// with host memory.
//
// As much memory as there are slots, for all streams of a P2p. Several chunks are on their way at a
// time, by the network and to the devices.
#pragma once

#include <atomic>
#include <memory>
#include <optional>
#include <vector>

#include "gate.h"
#include "mark.h"
#include "p2p.h"

namespace ckpt {

// What of a copy goes through one slot.
struct BounceChunk {
  std::shared_ptr<P2pRemote> from;
  uint64_t offset;
  uint64_t bytes;

  Gate there;  // opens when the bytes are in the slot, or never will be
  std::optional<Error> failure;
  const uint8_t* slot = nullptr;

  // The stream's part. `until`: the device has read the slot; null when it was not told to.
  std::shared_ptr<Mark> until;
  std::atomic<bool> left{false};  // the stream does not come back to it
};

class Bounce {
 public:
  // CKPT_ERR_MEMORY
  explicit Bounce(UcxWorker& worker);
  ~Bounce();
  Bounce(const Bounce&) = delete;

  static constexpr uint64_t kChunkBytes = 4ull << 20;
  using Chunks = std::vector<std::shared_ptr<BounceChunk>>;
  // In this order, behind those of earlier calls.
  void read(const Chunks& chunks);

 private:
  class Pump;
  UcxWorker& worker_;
  Ucx::Memory registered_ = nullptr;
  std::shared_ptr<Pump> pump_;  // its thread keeps it too
};

}  // namespace ckpt
