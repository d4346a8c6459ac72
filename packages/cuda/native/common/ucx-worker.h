// A UCX worker: its endpoints, what is posted on them, and the thread that drives it.
//
// Only the thread progresses it, so that whoever posts need not come back for the peers' sake (get
// over TCP is answered by the owner's worker), and so that UCX's own threads are started by a
// thread that blocks signals. It spins shortly while something is under way, then sleeps on the
// worker's event descriptor.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <unordered_map>
#include <utility>
#include <vector>

#include "completion.h"
#include "ucx-api.h"

namespace ckpt {

class UcxWorker {
 public:
  struct Peer {
    Ucx::Endpoint endpoint = nullptr;
    std::optional<Error> failure;  // nothing can be posted any more
    bool lost = false;             // what waits for it has not been ended yet
    UcxWorker* worker = nullptr;
  };

  static constexpr uint64_t kAnyLength = UINT64_MAX;
  // What was posted. UCX neither reads nor writes its memory once it is complete.
  struct Request {
    Completion completion;
    Ucx::TagInfo received{};  // when a receive is complete
    const char* what = "";
    UcxWorker* worker = nullptr;
    Peer* peer = nullptr;
    bool receives = false;
    uint8_t* to = nullptr;  // of receive_into(), while it goes on
    std::vector<uint8_t> aside;  // where it goes first: it has no room for a refusal
    uint64_t length = kAnyLength;   // of a receive; what has another one is a refusal
    std::shared_ptr<const void> keeps;  // what UCX reads until it is complete
    bool posted = false;  // the call that posts has returned
    void* native = nullptr;
  };
  using Pending = std::shared_ptr<Request>;

  // CKPT_ERR_UNSUPPORTED without UCX. Settings: UCX's, without "UCX_".
  using Settings = std::vector<std::pair<const char*, std::string>>;
  UcxWorker(uint64_t features, const Settings& settings);
  ~UcxWorker();
  UcxWorker(const UcxWorker&) = delete;

  const std::vector<uint8_t>& address() const noexcept { return address_; }

  // The peer lives as long as the worker. Nothing is sent yet.
  Peer* connect(const std::vector<uint8_t>& address);
  // What is under way ends with an error first.
  void disconnect(Peer* peer);
  // Whether nothing can be posted to it any more.
  bool failed(const Peer* peer);
  // How many peers UCX has said so of.
  uint64_t failures() const noexcept { return failures_; }

  // Calls post(params) with what makes UCX say when it is done. Throws the peer's failure.
  using Post = std::function<Ucx::StatusPointer(const Ucx::RequestParams&)>;
  Pending send(Peer* peer, const char* what, const Post& post) {
    return start(peer, what, post, false, kAnyLength);
  }
  Pending receive(Peer* peer, const char* what, const Post& post, uint64_t length = kAnyLength) {
    return start(peer, what, post, true, length);
  }
  // A message with this tag and of this length, or a refusal (p2p-frames.h), whose error it ends with:
  // what is at `to` is nothing then. It ends with its peer at once, even when half of it is there: UCX
  // cannot cancel it then, but what still comes is dropped.
  Pending receive_into(Peer* peer, const char* what, void* to, uint64_t bytes, uint64_t tag);
  // Of a receive that nothing has come for.
  void cancel(const Pending& request);
  // Receives are from whoever sends.
  Peer* anyone() noexcept { return &anyone_; }
  // Called by the thread, and with no lock held, whenever something has come or has ended, the last
  // time when all has; null: nothing is. Returns whether it is to be called again though nothing does.
  void set_step(std::function<bool()> step);
  Ucx::Worker worker() const noexcept { return worker_; }

  // Registers memory, which must stay until unmap() or the end. readable: for the peers.
  Ucx::Memory map(void* address, uint64_t bytes, bool readable);
  void unmap(Ucx::Memory memory) noexcept;
  std::vector<uint8_t> pack(Ucx::Memory memory);
  // What pack() gave a peer's; valid until release() or the end.
  Ucx::RemoteKey unpack(Peer* peer, const std::vector<uint8_t>& packed);
  void release(Ucx::RemoteKey key) noexcept;
  // What UCX prints of the connection.
  std::string describe(Peer* peer);

  // Ends all that is posted with this reason, the connections at once, and then the thread. Does
  // not wait. The first call decides.
  void abort(Error reason);
  // As abort(), but what was sent leaves first.
  void close();
  // CKPT_ERR_TIMEOUT when the thread has not ended by then (it goes on trying).
  void wait_ended(uint32_t timeout_ms);

 private:
  // The thread takes the mutex again and again: it lets others come first.
  class Lock {
   public:
    explicit Lock(UcxWorker& worker) : worker_(worker) {
      worker_.wanting_++;
      worker_.mutex_.lock();
      worker_.wanting_--;
    }
    ~Lock() { worker_.mutex_.unlock(); }
    Lock(const Lock&) = delete;

   private:
    UcxWorker& worker_;
  };
  Pending start(Peer* peer, const char* what, const Post& post, bool receives, uint64_t length);
  void open(uint64_t features, const Settings& settings);
  void open_context(uint64_t features, const Settings& settings);
  enum class Round { moved, still, armed, armed_pending, unarmed };
  Round progress(bool may_sleep);
  void run();
  bool step();
  // armed: until UCX has something, too.
  void sleep(bool armed, std::optional<std::chrono::microseconds> limit);
  void wake() noexcept;
  void end(Error reason, bool flush);
  void shut_locked();
  void close_endpoint_locked(Peer& peer, bool flush, std::vector<void*>& closing);
  void end_lost_locked();
  void cancel_receives_locked(const Peer* peer);
  void cancel_locked(const Pending& request);
  void finish_locked(Request& request, Ucx::Status status);
  static void finish_received(Request& request, uint8_t* to);
  static uint64_t datatype();
  static void on_sent(void* native, Ucx::Status status, void* user_data);
  static void on_received(void* native, Ucx::Status status, const Ucx::TagInfo*, void* user_data);
  static void on_failure(void* argument, Ucx::Endpoint, Ucx::Status status);

  const Ucx& ucx_ = Ucx::get();
  std::mutex mutex_;  // around every call of UCX and all of the following
  std::atomic<int> wanting_{0};
  Ucx::Context context_ = nullptr;
  Ucx::Worker worker_ = nullptr;
  std::vector<uint8_t> address_;
  std::vector<std::unique_ptr<Peer>> peers_;
  std::unordered_map<Request*, Pending> pending_;
  std::unordered_map<Request*, Pending> dropping_;  // complete, but not to UCX
  std::set<Ucx::Memory> mapped_;
  std::set<Ucx::RemoteKey> keys_;
  Peer anyone_;
  bool any_lost_ = false;
  std::atomic<uint64_t> failures_{0};
  bool asleep_ = false;
  bool any_ended_ = false;  // since the last step
  std::optional<Error> ending_;
  bool flush_ = false;

  std::mutex step_mutex_;  // held while it runs
  std::function<bool()> step_;

  std::atomic<bool> stop_{false};
  int event_fd_ = -1;  // UCX's
  int wake_fd_ = -1;
  Completion opened_;
  Completion ended_;
  std::thread thread_;
};

}  // namespace ckpt
