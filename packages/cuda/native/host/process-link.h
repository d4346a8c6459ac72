// The connections of a communicator from this process to each other one of its processes.
//
// UCP_ERR_HANDLING_MODE_PEER is on: a process that is gone ends what waits for it.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "common/ucx-worker.h"
#include "rendezvous-frames.h"

namespace ckpt {

class ProcessLink {
 public:
  using Pending = UcxWorker::Pending;

  // CKPT_ERR_UNSUPPORTED without UCX.
  ProcessLink();
  const std::vector<uint8_t>& address() const noexcept { return worker_.address(); }

  // Greets every other process; `self` is this one's number. Called once.
  void connect(const MemberTable& table, uint32_t self);
  // Until every other one has greeted. signal may be null. CKPT_ERR_ABORTED, CKPT_ERR_TIMEOUT, or
  // what is in the way of a connection.
  void wait_connected(Signal* signal, Clock::time_point deadline);

  // The bytes of a broadcast to every other process, all at once. `number` is the broadcast's.
  // They are there when it is complete. What cannot be sent is complete with its error.
  class Sends {
   public:
    // For all of them, then throws the first error.
    void wait() const;

   private:
    friend class ProcessLink;
    std::vector<Pending> pending_;
    std::vector<Error> failures_;
  };
  Sends send(uint64_t number, const uint8_t* bytes, uint64_t count);
  // In place of bytes: the root's stream has failed.
  Sends send_failure(uint64_t number, const Error& failure);
  // Blocks. CKPT_ERR_INVALID when it is of another length.
  void receive(uint64_t number, uint32_t process, uint8_t* bytes, uint64_t count);
  // Takes it and drops it.
  void drop(uint64_t number, uint32_t process);

  // Ends every wait. Neither waits for the end.
  void abort();
  void close() { worker_.close(); }
  void wait_ended(uint32_t timeout_ms) { worker_.wait_ended(timeout_ms); }

 private:
  Sends send_tagged(uint64_t tag, const uint8_t* bytes, uint64_t count);
  Pending post_receive(UcxWorker::Peer* peer, const char* what, uint64_t tag, uint64_t mask,
                       uint8_t* bytes, uint64_t count);

  const Ucx& ucx_ = Ucx::get();
  std::vector<UcxWorker::Peer*> peers_;  // by process; null for this one
  std::vector<uint8_t> greetings_;       // room for them
  std::vector<Pending> greeting_;
  UcxWorker worker_;  // last: it ends before what it writes to
};

}  // namespace ckpt
