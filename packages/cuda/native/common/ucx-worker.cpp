#include "ucx-worker.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "p2p-frames.h"
#include "threads.h"

namespace ckpt {
namespace {

constexpr unsigned kApiMajor = 1, kApiMinor = 12;
// A round trip over shared memory or loopback TCP.
constexpr std::chrono::microseconds kSpin{50};
// UCX does not tell of all that it could go on with: a sender, say, not of room in its peer's queue
// in shared memory, and may refuse to be armed until then. So it looks again, soon at first. To
// spin instead keeps the peer from the processor where there are more threads than processors.
constexpr std::chrono::microseconds kNapFirst{30};
constexpr std::chrono::microseconds kNapMaxUnarmed{500};
constexpr std::chrono::microseconds kNapMax{16000};
constexpr std::chrono::seconds kFlushLimit{2};
constexpr uint32_t kExitMs = 2000;

// UCX's libraries are torn down at exit: no thread may be in them then.
struct Live {
  std::mutex mutex;
  std::set<UcxWorker*> workers;
};

Live& live() {
  static Live& all = *new Live;
  return all;
}

void end_all() {
  std::lock_guard lock(live().mutex);
  for (UcxWorker* worker : live().workers)
    worker->abort(Error(CKPT_ERR_ABORTED, "the process ends"));
  for (UcxWorker* worker : live().workers) {
    try {
      worker->wait_ended(kExitMs);
    } catch (const std::exception&) {
    }
  }
}

void enter_live(UcxWorker* worker) {
  static std::once_flag once;
  std::call_once(once, [] { std::atexit(end_all); });
  std::lock_guard lock(live().mutex);
  live().workers.insert(worker);
}

}  // namespace

UcxWorker::UcxWorker(uint64_t features, const Settings& settings)
    : wake_fd_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
  if (wake_fd_ < 0) fail_errno(CKPT_ERR_MEMORY, errno, "eventfd");
  try {
    thread_ = start_thread("ckpt-ucx", [this, features, settings] {
      try {
        open(features, settings);
      } catch (const Error& error) {
        std::lock_guard lock(mutex_);
        ending_ = error;
        shut_locked();
        opened_.complete(error.status(), error.text());
        return;
      }
      opened_.complete(CKPT_OK, "");
      run();
    });
    opened_.wait(nullptr, UINT32_MAX, "UCX");
  } catch (...) {
    if (thread_.joinable()) thread_.join();
    ::close(wake_fd_);
    throw;
  }
  enter_live(this);
}

UcxWorker::~UcxWorker() {
  {
    std::lock_guard lock(live().mutex);
    live().workers.erase(this);
  }
  abort(Error(CKPT_ERR_ABORTED, "the connection is closed"));
  thread_.join();
  ::close(wake_fd_);
}

void UcxWorker::open(uint64_t features, const Settings& settings) {
  std::lock_guard lock(mutex_);
  open_context(features, settings);
  Ucx::WorkerParams params{};
  params.field_mask = Ucx::WorkerParams::kThreadMode | Ucx::WorkerParams::kFlags;
  params.thread_mode = Ucx::WorkerParams::kSerialized;
  params.flags = Ucx::WorkerParams::kIgnoreRequestLeak;
  ucx_.check(ucx_.worker_create(context_, &params, &worker_), "ucp_worker_create");
  ucx_.check(ucx_.worker_get_efd(worker_, &event_fd_), "ucp_worker_get_efd");
  Ucx::Address* address = nullptr;
  size_t bytes = 0;
  ucx_.check(ucx_.worker_get_address(worker_, &address, &bytes), "ucp_worker_get_address");
  const auto* first = reinterpret_cast<const uint8_t*>(address);
  address_.assign(first, first + bytes);
  ucx_.worker_release_address(worker_, address);
}

void UcxWorker::open_context(uint64_t features, const Settings& settings) {
  Ucx::Config* config = nullptr;
  ucx_.check(ucx_.config_read(nullptr, nullptr, &config), "ucp_config_read");
  Ucx::Params params{};
  params.field_mask = Ucx::Params::kFeatures;
  params.features = features | Ucx::Params::kFeatureWakeup;
  Ucx::Status status = Ucx::kOk;
  for (const auto& [name, value] : settings) {
    if (status == Ucx::kOk) status = ucx_.config_modify(config, name, value.c_str());
  }
  if (status == Ucx::kOk)
    status = ucx_.init_version(kApiMajor, kApiMinor, &params, config, &context_);
  ucx_.config_release(config);
  ucx_.check(status, "ucp_init");
}

UcxWorker::Peer* UcxWorker::connect(const std::vector<uint8_t>& address) {
  const Lock lock(*this);
  if (ending_) throw Error(*ending_);
  auto peer = std::make_unique<Peer>();
  peer->worker = this;
  Ucx::EndpointParams params{};
  params.field_mask = Ucx::EndpointParams::kRemoteAddress | Ucx::EndpointParams::kErrorMode |
                      Ucx::EndpointParams::kErrorHandler;
  params.address = reinterpret_cast<const Ucx::Address*>(address.data());
  params.error_mode = Ucx::EndpointParams::kErrorModePeer;
  params.error_handler = {on_failure, peer.get()};
  ucx_.check(ucx_.ep_create(worker_, &params, &peer->endpoint), "ucp_ep_create");
  peers_.push_back(std::move(peer));
  wake();
  return peers_.back().get();
}

void UcxWorker::disconnect(Peer* peer) {
  const Lock lock(*this);
  if (ending_ || peer->endpoint == nullptr) return;
  if (!peer->failure) peer->failure = Error(CKPT_ERR_ABORTED, "the peer was disconnected");
  cancel_receives_locked(peer);
  std::vector<void*> closing;
  close_endpoint_locked(*peer, false, closing);
  for (void* request : closing) ucx_.request_free(request);
  wake();
}

bool UcxWorker::failed(const Peer* peer) {
  const Lock lock(*this);
  return peer->failure.has_value();
}

UcxWorker::Pending UcxWorker::start(Peer* peer, const char* what, const Post& post, bool receives,
                                    uint64_t length) {
  const auto request = std::make_shared<Request>();
  request->what = what;
  request->worker = this;
  request->peer = peer;
  request->receives = receives;
  request->length = length;
  Ucx::RequestParams params{};
  params.mask = Ucx::RequestParams::kCallback | Ucx::RequestParams::kUserData |
                Ucx::RequestParams::kMemoryType | Ucx::RequestParams::kNotAtOnce;
  params.memory_type = Ucx::RequestParams::kHostMemory;
  params.user_data = request.get();
  if (receives) {
    params.received = on_received;
  } else {
    params.sent = on_sent;
  }
  const Lock lock(*this);
  if (ending_) throw Error(*ending_);
  if (peer->failure) throw Error(*peer->failure);
  pending_.emplace(request.get(), request);
  const Ucx::StatusPointer pointer = post(params);
  request->posted = true;
  if (request->completion.done()) {  // within the call
    if (Ucx::is_request(pointer)) ucx_.request_free(pointer);
  } else if (Ucx::is_request(pointer)) {
    request->native = pointer;
  } else {
    finish_locked(*request, Ucx::status_of(pointer));
  }
  wake();
  return request;
}

// As UCX's own way to contiguous memory, but for memory that it forgets when it is told to.
uint64_t UcxWorker::datatype() {
  static const uint64_t made = [] {
    Ucx::Unpacking calls{};
    calls.start_pack = [](void*, const void*, size_t) -> void* { return nullptr; };
    calls.start_unpack = [](void*, void* request, size_t) { return request; };
    calls.packed_bytes = [](void* request) -> size_t {
      return std::max<uint64_t>(static_cast<Request*>(request)->length, kRefusalBytesMax);
    };
    calls.pack = [](void*, size_t, void*, size_t) -> size_t { return 0; };
    calls.unpack = [](void* request, size_t offset, const void* from, size_t bytes) {
      Request& into = *static_cast<Request*>(request);
      if (into.to == nullptr) return Ucx::kOk;
      uint8_t* to = into.aside.empty() ? into.to : into.aside.data();
      std::memcpy(to + offset, from, bytes);
      return Ucx::kOk;
    };
    calls.finish = [](void*) {};
    uint64_t datatype = 0;
    const Ucx& ucx = Ucx::get();
    ucx.check(ucx.dt_create_generic(&calls, nullptr, &datatype), "ucp_dt_create_generic");
    return datatype;
  }();
  return made;
}

UcxWorker::Pending UcxWorker::receive_into(Peer* peer, const char* what, void* to, uint64_t bytes,
                                           uint64_t tag) {
  return receive(
      peer, what,
      [&](const Ucx::RequestParams& given) {
        Ucx::RequestParams params = given;
        params.mask |= Ucx::RequestParams::kDatatype;
        params.datatype = datatype();
        auto& request = *static_cast<Request*>(params.user_data);
        request.to = static_cast<uint8_t*>(to);
        if (bytes < kRefusalBytesMax) request.aside.resize(kRefusalBytesMax);
        const uint64_t room = std::max<uint64_t>(bytes, kRefusalBytesMax);
        return ucx_.tag_recv_nbx(worker_, &request, room, tag, UINT64_MAX, &params);
      },
      bytes);
}

void UcxWorker::finish_locked(Request& request, Ucx::Status status) {
  const auto found = pending_.find(&request);
  if (found == pending_.end()) return;
  const Pending kept = std::move(found->second);
  pending_.erase(found);
  uint8_t* to = std::exchange(request.to, nullptr);
  any_ended_ = true;
  // Whoever has ended it knows better why than UCX, to which it was canceled.
  const Peer& peer = *request.peer;
  if (status >= 0) {
    finish_received(request, to);
  } else if (ending_ || peer.failure) {
    const Error& why = ending_ ? *ending_ : *peer.failure;
    request.completion.complete(why.status(), why.text());
  } else {
    const Error error = ucx_.error_of(status, request.what);
    request.completion.complete(error.status(), error.text());
  }
}

void UcxWorker::finish_received(Request& request, uint8_t* to) {
  const std::vector<uint8_t>& aside = request.aside;
  const uint64_t came = request.received.length;
  if (request.length == kAnyLength || request.length == came) {
    if (!aside.empty()) std::memcpy(to, aside.data(), came);
    request.completion.complete(CKPT_OK, "");
  } else {
    const Error why = read_refusal(aside.empty() ? to : aside.data(), to == nullptr ? 0 : came);
    request.completion.complete(why.status(), why.text());
  }
}

// The callbacks are called by what holds the mutex: progress, or the call that posts.
void UcxWorker::on_sent(void* native, Ucx::Status status, void* user_data) {
  Request& request = *static_cast<Request*>(user_data);
  UcxWorker& worker = *request.worker;
  const bool posted = request.posted;
  worker.finish_locked(request, status);
  if (posted) worker.ucx_.request_free(native);
  worker.dropping_.erase(&request);
}

void UcxWorker::on_received(void* native, Ucx::Status status, const Ucx::TagInfo* received,
                            void* user_data) {
  if (received != nullptr) static_cast<Request*>(user_data)->received = *received;
  on_sent(native, status, user_data);
}

void UcxWorker::on_failure(void* argument, Ucx::Endpoint, Ucx::Status status) {
  Peer& peer = *static_cast<Peer*>(argument);
  if (!peer.failure) {
    const char* reason = peer.worker->ucx_.status_string(status);
    peer.failure = Error(CKPT_ERR_IO, format_text("the peer process is lost: UCX: %s", reason));
  }
  peer.lost = peer.worker->any_lost_ = true;
  peer.worker->failures_++;
}

void UcxWorker::cancel(const Pending& request) {
  const Lock lock(*this);
  if (!ending_ && !request->completion.done() && request->native != nullptr) cancel_locked(request);
}

// UCX completes what nothing has come for within the call.
void UcxWorker::cancel_locked(const Pending& request) {
  ucx_.request_cancel(worker_, request->native);
  if (request->to == nullptr) return;
  dropping_.emplace(request.get(), request);
  finish_locked(*request, Ucx::kCanceled);
}

void UcxWorker::set_step(std::function<bool()> step) {
  std::lock_guard lock(step_mutex_);
  step_ = std::move(step);
}

void UcxWorker::cancel_receives_locked(const Peer* peer) {
  std::vector<Pending> receives;
  for (const auto& [_, request] : pending_) {
    if (request->receives && request->native != nullptr &&
        (peer == nullptr || request->peer == peer))
      receives.push_back(request);
  }
  for (const Pending& request : receives) cancel_locked(request);
}

// A receive that nothing has come for does not know its peer in UCX.
void UcxWorker::end_lost_locked() {
  any_lost_ = false;
  for (const auto& peer : peers_) {
    if (!peer->lost) continue;
    peer->lost = false;
    cancel_receives_locked(peer.get());
  }
}

UcxWorker::Round UcxWorker::progress(bool may_sleep) {
  std::lock_guard lock(mutex_);
  const bool moved = ucx_.worker_progress(worker_) > 0;
  if (!moved && any_lost_) end_lost_locked();
  if (std::exchange(any_ended_, false) || moved) return Round::moved;
  if (!may_sleep) return Round::still;
  asleep_ = true;
  if (ucx_.worker_arm(worker_) != Ucx::kOk) return Round::unarmed;
  return pending_.empty() ? Round::armed : Round::armed_pending;
}

void UcxWorker::run() {
  auto busy_until = Clock::now();
  std::chrono::microseconds nap = kNapFirst;
  bool again = false;
  while (!stop_) {
    if (wanting_ > 0) {
      std::this_thread::yield();
      continue;
    }
    const Round round = progress(!again && Clock::now() >= busy_until);
    switch (again ? Round::moved : round) {
      case Round::moved:
        again = step();
        busy_until = Clock::now() + kSpin;
        nap = kNapFirst;
        continue;
      case Round::still: std::this_thread::yield(); continue;
      case Round::armed: sleep(true, std::nullopt); break;
      case Round::armed_pending:
      case Round::unarmed:
        sleep(round == Round::armed_pending, nap);
        nap = std::min(2 * nap, round == Round::unarmed ? kNapMaxUnarmed : kNapMax);
    }
  }
  {
    std::lock_guard lock(mutex_);
    shut_locked();
  }
  step();
}

bool UcxWorker::step() {
  std::lock_guard lock(step_mutex_);
  return step_ && step_();
}

void UcxWorker::sleep(bool armed, std::optional<std::chrono::microseconds> limit) {
  pollfd fds[] = {{wake_fd_, POLLIN, 0}, {event_fd_, POLLIN, 0}};
  const timespec time{0, limit ? static_cast<long>(limit->count()) * 1000 : 0};
  ppoll(fds, armed ? 2 : 1, limit ? &time : nullptr, nullptr);
  std::lock_guard lock(mutex_);
  asleep_ = false;
  uint64_t count;
  if (fds[0].revents != 0) (void)!read(wake_fd_, &count, sizeof count);
}

void UcxWorker::wake() noexcept {
  const uint64_t one = 1;
  if (asleep_) (void)!write(wake_fd_, &one, sizeof one);
}

void UcxWorker::end(Error reason, bool flush) {
  const Lock lock(*this);
  if (ending_) return;
  ending_ = std::move(reason);
  flush_ = flush;
  stop_ = true;
  wake();
}

void UcxWorker::abort(Error reason) { end(std::move(reason), false); }
void UcxWorker::close() { end(Error(CKPT_ERR_ABORTED, "the connection is closed"), true); }
void UcxWorker::wait_ended(uint32_t timeout_ms) { ended_.wait(nullptr, timeout_ms, "UCX's end"); }

void UcxWorker::close_endpoint_locked(Peer& peer, bool flush, std::vector<void*>& closing) {
  if (peer.endpoint == nullptr) return;
  Ucx::RequestParams params{};
  params.mask = Ucx::RequestParams::kFlags;
  params.flags = flush && !peer.failure ? 0 : Ucx::RequestParams::kCloseForce;
  const Ucx::StatusPointer pointer =
      ucx_.ep_close_nbx(std::exchange(peer.endpoint, nullptr), &params);
  if (Ucx::is_request(pointer)) closing.push_back(pointer);
}

// UCX's own order: requests, endpoints, keys, worker, memory, context. What it cannot end by then
// it no longer touches once the worker is gone.
void UcxWorker::shut_locked() {
  if (worker_ != nullptr) {
    cancel_receives_locked(nullptr);
    std::vector<void*> closing;
    for (const auto& peer : peers_) close_endpoint_locked(*peer, flush_, closing);
    const auto limit = Clock::now() + kFlushLimit;
    while (!closing.empty() && Clock::now() < limit) {
      if (ucx_.worker_progress(worker_) == 0) std::this_thread::yield();
      const auto ended = [&](void* request) {
        if (ucx_.request_check_status(request) > Ucx::kOk) return false;  // it goes on
        ucx_.request_free(request);
        return true;
      };
      closing.erase(std::remove_if(closing.begin(), closing.end(), ended), closing.end());
    }
    for (const Ucx::RemoteKey key : std::exchange(keys_, {})) ucx_.rkey_destroy(key);
    // A peer behind a cut link never answers. UCX aborts the process where an endpoint that goes with
    // its worker has a request that somebody still holds.
    for (void* request : closing) ucx_.request_free(request);
    ucx_.worker_destroy(std::exchange(worker_, nullptr));
  }
  for (const Ucx::Memory memory : std::exchange(mapped_, {})) ucx_.mem_unmap(context_, memory);
  if (context_ != nullptr) ucx_.cleanup(std::exchange(context_, nullptr));
  const auto left = std::exchange(pending_, {});
  for (const auto& [_, request] : left)
    request->completion.complete(ending_->status(), ending_->text());
  ended_.complete(CKPT_OK, "");
}

}  // namespace ckpt
