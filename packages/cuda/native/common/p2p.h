// Reads of other processes' pinned memory by UCX, see ckpt_p2p_open.
#pragma once

#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "buffer.h"
#include "handle-table.h"
#include "p2p-read.h"
#include "p2p-server.h"
#include "ucx-worker.h"

namespace ckpt {

// Memory that UCX knows: it need not be registered for each read.
class P2pMemory {
 public:
  P2pMemory(UcxWorker& worker, void* address, uint64_t bytes, bool readable)
      : worker_(worker), memory_(worker.map(address, bytes, readable)) {}
  ~P2pMemory() { worker_.unmap(memory_); }
  P2pMemory(const P2pMemory&) = delete;
  Ucx::Memory get() const noexcept { return memory_; }

 private:
  UcxWorker& worker_;
  const Ucx::Memory memory_;
};

class P2p : public Object {
 public:
  static constexpr Kind kKind = Kind::p2p;
  // CKPT_ERR_UNSUPPORTED without UCX.
  explicit P2p(const std::string& devices);
  ~P2p() override;

  // What a peer's connect() takes.
  std::vector<uint8_t> address() const;
  // What a peer's attach() takes. CKPT_ERR_STATE when it is shared already.
  std::vector<uint8_t> share(std::shared_ptr<Buffer> buffer);
  void unshare(const Buffer& buffer);
  // For reads into a range of a buffer: what share() has registered, else the range alone.
  std::shared_ptr<P2pMemory> memory_for(const Buffer& buffer, uint64_t offset, uint64_t bytes);
  // Ends what reads, here and by peers. CKPT_ERR_TIMEOUT as for abort() of a communicator.
  void close() override;

  UcxWorker& worker() noexcept { return worker_; }
  P2pReads& reads() noexcept { return reads_; }
  uint64_t next_read() noexcept { return next_read_++; }
  // Where a backend keeps what it needs once for each: made at the first call.
  template <class T>
  std::shared_ptr<T> part() {
    std::lock_guard lock(mutex_);
    if (part_ == nullptr) part_ = std::make_shared<T>(worker_);
    return std::static_pointer_cast<T>(part_);
  }

 private:
  struct Share {
    std::shared_ptr<Buffer> buffer;
    std::shared_ptr<P2pMemory> memory;  // null: it maps a file, see p2p-server.h
  };
  std::mutex mutex_;
  std::atomic<uint64_t> next_read_{0};
  UcxWorker worker_;
  P2pServer server_{worker_};
  P2pReads reads_;
  std::map<const Buffer*, Share> shares_;
  std::shared_ptr<void> part_;  // last: it ends before the worker
};

// A process that reads go to.
class P2pPeer : public Object {
 public:
  static constexpr Kind kKind = Kind::p2p_peer;
  // `address` is what P2p::address() has given: CKPT_ERR_INVALID when it cannot be.
  P2pPeer(std::shared_ptr<P2p> p2p, const uint8_t* address, uint32_t length);
  // Lets it be asked for what is read, from the first call on.
  void introduce();
  // Ends what reads from it.
  void close() override;
  // "rdma", "cma", "shm" or "emulated".
  const std::string& transport() const noexcept { return transport_; }
  // UCX reads, but for what maps a file; else it is asked for what is read.
  bool reads_itself() const noexcept { return transport_ == "rdma" || transport_ == "cma"; }

  P2p& p2p() noexcept { return *p2p_; }
  UcxWorker::Peer* peer() const noexcept { return peer_; }
  // What it knows this reader as.
  uint64_t reader() const noexcept { return reader_; }

 private:
  void send_address();
  void leave();
  void tell(const char* what, std::shared_ptr<const std::vector<uint8_t>> message);
  const std::shared_ptr<P2p> p2p_;
  UcxWorker::Peer* peer_;
  std::string transport_;
  std::once_flag introduced_;
  uint64_t reader_ = 0;
};

// Memory that a peer shares.
class P2pRemote : public Object {
 public:
  static constexpr Kind kKind = Kind::p2p_remote;
  static constexpr uint64_t kGetBytes = kReadBytesMax;  // of reads that are cut
  static constexpr const char* kRead = "read from a peer";
  // `key` is what share() of the peer has given: CKPT_ERR_INVALID when it cannot be.
  P2pRemote(std::shared_ptr<P2pPeer> peer, const uint8_t* key, uint32_t length);
  ~P2pRemote() override;

  uint64_t bytes() const noexcept { return bytes_; }
  P2p& p2p() noexcept { return peer_->p2p(); }
  P2pPeer& peer() noexcept { return *peer_; }
  // Else the peer is asked, and what comes of it needs no registered memory.
  bool reads_itself() const noexcept { return key_ != nullptr; }
  // Ranges are checked. `registered`: of the local memory, or null.
  UcxWorker::Pending get(uint64_t offset, void* to, uint64_t bytes, Ucx::Memory registered);
  // Several gets at a time; returns when the bytes are there. Nothing writes there any more when it
  // throws.
  void read(uint64_t offset, void* to, uint64_t bytes);

 private:
  UcxWorker::Pending ask(uint64_t address, void* to, uint64_t bytes);
  const Ucx& ucx_ = Ucx::get();
  const std::shared_ptr<P2pPeer> peer_;
  uint64_t address_ = 0;
  uint64_t bytes_ = 0;
  Ucx::RemoteKey key_ = nullptr;  // null: the peer is asked
};

}  // namespace ckpt
