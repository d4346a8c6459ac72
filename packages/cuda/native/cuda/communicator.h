// Communicators of NCCL.
#pragma once

#include <atomic>
#include <memory>
#include <mutex>

#include "limit.h"
#include "memory.h"
#include "nccl-api.h"
#include "signals.h"
#include "stream.h"

namespace ckpt {

// CKPT_ERR_UNSUPPORTED where so many members cannot have one device.
void require_shared_device(const Nccl& nccl, uint32_t sharers);

class NcclCommunicator : public Communicator,
                         public std::enable_shared_from_this<NcclCommunicator> {
 public:
  // Returns when every member has come and the first broadcasts, which connect them and load the
  // kernels, have run.
  static std::shared_ptr<NcclCommunicator> create(const CommunicatorPlace& place,
                                                  std::shared_ptr<Signal> signal,
                                                  uint32_t timeout_ms);
  NcclCommunicator(const CommunicatorPlace& place, std::shared_ptr<Signal> signal)
      : Communicator(place.device, place.members), signal_(std::move(signal)) {}
  ~NcclCommunicator() override;

  void broadcast(std::shared_ptr<Stream> stream, std::shared_ptr<Memory> memory, uint32_t root,
                 uint64_t offset, uint64_t bytes) override;
  void abort() override;

 private:
  void init(const CommunicatorPlace& place, const Limit& limit);
  void warm_up(void* scratch, cudaStream_t stream, const Limit& limit);
  void enqueue(cudaStream_t stream, void* bytes, uint64_t count, uint32_t root, const Limit& limit);
  // Until NCCL has done what it goes on with behind a call.
  void settle_locked(const char* what, const Limit& limit);

  void end_locked_out();
  void end() noexcept;

  const Nccl& nccl_ = Nccl::get();
  const std::shared_ptr<Signal> signal_;  // of the member; may be null
  std::atomic<bool> aborted_{false};
  std::mutex mutex_;  // around every call of NCCL
  Nccl::Comm comm_ = nullptr;
};

}  // namespace ckpt
