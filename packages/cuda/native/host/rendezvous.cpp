#include "rendezvous.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <deque>
#include <memory>
#include <mutex>

#include "common/error.h"
#include "common/threads.h"
#include "common/wake.h"
#include "rendezvous-guests.h"

namespace ckpt {
namespace {

constexpr std::chrono::minutes kLife{10};
// For the answers to leave.
constexpr std::chrono::seconds kLinger{10};
// Connections that have not shown the secret yet; more wait in the kernel's queue.
constexpr size_t kStrangersMax = 256;
constexpr int kQueue = 1024;
// Ids that nobody comes to: the oldest gives way.
constexpr size_t kRendezvousMax = 64;
constexpr int kLookMs = 1000;

class Rendezvous {
 public:
  Rendezvous();
  ~Rendezvous();
  Rendezvous(const Rendezvous&) = delete;

  const RendezvousId& id() const noexcept { return id_; }
  void serve();
  void stop() noexcept;

 private:
  void accept_one();
  bool over() const;

  int listener_ = -1;
  int wake_ = -1;
  RendezvousId id_{};
  std::atomic<bool> stopped_{false};
  std::unique_ptr<RendezvousGuests> guests_;
  Clock::time_point end_ = Clock::now() + kLife;
};

struct All {
  std::mutex mutex;
  std::deque<std::shared_ptr<Rendezvous>> open;
};

All& all() {
  static All& one = *new All;
  return one;
}

Rendezvous::Rendezvous() {
  wake_ = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  listener_ = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  socklen_t bytes = sizeof address;
  auto* any = reinterpret_cast<sockaddr*>(&address);
  if (wake_ < 0 || listener_ < 0 || bind(listener_, any, bytes) != 0 ||
      listen(listener_, kQueue) != 0 || getsockname(listener_, any, &bytes) != 0) {
    const int error = errno;
    for (int fd : {wake_, listener_})
      if (fd >= 0) ::close(fd);
    fail_errno(CKPT_ERR_IO, error, "the communicator's listener");
  }
  id_ = make_rendezvous_id(ntohs(address.sin_port));
  guests_ = std::make_unique<RendezvousGuests>(id_.secret);
}

Rendezvous::~Rendezvous() {
  ::close(listener_);
  ::close(wake_);
}

void Rendezvous::stop() noexcept {
  stopped_ = true;
  const uint64_t one = 1;
  (void)!write(wake_, &one, sizeof one);
}

bool Rendezvous::over() const {
  if (stopped_ || Clock::now() >= end_) return true;
  return guests_->complete() && guests_->empty();
}

void Rendezvous::accept_one() {
  const int fd = accept4(listener_, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC);
  if (fd >= 0) {
    guests_->enter(fd);
  } else if (errno == EMFILE || errno == ENFILE) {
    poll(nullptr, 0, kLookMs / 10);  // it stays in the queue, and poll would return at once
  }
}

void Rendezvous::serve() {
  std::vector<pollfd> fds;
  while (!over()) {
    const bool was_complete = guests_->complete();
    const bool listens = !was_complete && guests_->strangers() < kStrangersMax;
    fds.assign({{wake_, POLLIN, 0}, {listener_, static_cast<short>(listens ? POLLIN : 0), 0}});
    guests_->list(fds);
    if (poll(fds.data(), fds.size(), kLookMs) < 0 && errno != EINTR) return;
    guests_->move(fds.data() + 2, fds.size() - 2);
    if ((fds[1].revents & POLLIN) != 0) accept_one();
    if (!was_complete && guests_->complete()) end_ = Clock::now() + kLinger;
  }
}

void leave(const std::shared_ptr<Rendezvous>& one) {
  std::lock_guard lock(all().mutex);
  auto& open = all().open;
  open.erase(std::remove(open.begin(), open.end(), one), open.end());
}

}  // namespace

RendezvousId open_rendezvous() {
  const auto rendezvous = std::make_shared<Rendezvous>();
  {
    std::lock_guard lock(all().mutex);
    auto& open = all().open;
    if (open.size() == kRendezvousMax) open.front()->stop();
    open.push_back(rendezvous);
  }
  try {
    start_thread("ckpt-meet", [rendezvous] {
      try {
        rendezvous->serve();
      } catch (const std::exception&) {  // no memory: its members see the connection end
      }
      leave(rendezvous);
    }).detach();
  } catch (...) {
    leave(rendezvous);
    throw;
  }
  return rendezvous->id();
}

void close_rendezvous(const RendezvousId& id) {
  std::lock_guard lock(all().mutex);
  for (const auto& one : all().open) {
    if (one->id().secret == id.secret) one->stop();
  }
}

}  // namespace ckpt
