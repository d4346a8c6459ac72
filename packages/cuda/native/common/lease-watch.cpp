#include "lease-watch.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <condition_variable>
#include <mutex>
#include <vector>

#include "threads.h"

namespace ckpt {
namespace {

// The kernel waits /proc/sys/fs/lease-break-time (45 s) before it takes a lease away.
constexpr std::chrono::seconds kReadersLeave{20};
// A break that was not heard of (a full signal queue, say) is found this late at most.
constexpr timespec kRescan{1, 0};

int lease_signal() { return SIGRTMIN + 12; }

}  // namespace

struct LeaseWatch::State {
  std::mutex mutex;
  std::condition_variable started;
  pid_t thread_id = 0;
  pthread_t thread;
  // Looked at through the pointer, which remove() takes back in time: a reference would keep a file
  // that was closed meanwhile, and its lease.
  struct Watched {
    File* file;
    std::weak_ptr<File> owned;
  };
  std::vector<Watched> files;
};

LeaseWatch& LeaseWatch::instance() {
  static LeaseWatch& watch = *new LeaseWatch;
  return watch;
}

LeaseWatch::LeaseWatch() : state_(*new State) {
  std::thread thread = start_thread("ckpt-lease", [this] { run(); });
  std::unique_lock lock(state_.mutex);
  state_.thread = thread.native_handle();
  thread.detach();
  state_.started.wait(lock, [this] { return state_.thread_id != 0; });
}

void LeaseWatch::direct_signals(int fd, const std::string& path) {
  const f_owner_ex owner{F_OWNER_TID, state_.thread_id};
  if (fcntl(fd, F_SETSIG, lease_signal()) != 0 || fcntl(fd, F_SETOWN_EX, &owner) != 0) {
    fail_errno(CKPT_ERR_LEASE, errno, "lease %s: the kernel cannot tell of a break", path.c_str());
  }
}

void LeaseWatch::add(std::weak_ptr<File> file) {
  std::lock_guard lock(state_.mutex);
  state_.files.push_back({file.lock().get(), file});
  // It may be waiting without a timeout, and the lease may have been broken already.
  pthread_kill(state_.thread, lease_signal());
}

void LeaseWatch::remove(const File* file) {
  std::lock_guard lock(state_.mutex);
  auto& files = state_.files;
  const auto is_file = [file](const State::Watched& watched) { return watched.file == file; };
  files.erase(std::remove_if(files.begin(), files.end(), is_file), files.end());
}

void LeaseWatch::run() {
  {
    std::lock_guard lock(state_.mutex);
    state_.thread_id = static_cast<pid_t>(syscall(SYS_gettid));
    state_.started.notify_all();
  }
  // start_thread has blocked both. The kernel sends SIGIO when the queue of real-time signals is
  // full.
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, lease_signal());
  sigaddset(&set, SIGIO);
  for (;;) {
    bool any;
    {
      std::lock_guard lock(state_.mutex);
      any = !state_.files.empty();
    }
    sigtimedwait(&set, nullptr, any ? &kRescan : nullptr);
    give_up_broken();
  }
}

void LeaseWatch::give_up_broken() {
  std::vector<std::shared_ptr<File>> broken;
  {
    std::lock_guard lock(state_.mutex);
    auto& files = state_.files;
    for (size_t i = 0; i < files.size();) {
      if (!files[i].file->lease_broken()) {
        i++;
        continue;
      }
      if (auto file = files[i].owned.lock()) broken.push_back(std::move(file));
      files[i] = std::move(files.back());
      files.pop_back();
    }
  }
  // All gates first: one slow reader must not let others in elsewhere.
  for (const auto& file : broken) file->gate_.close();
  const auto deadline = Clock::now() + kReadersLeave;
  for (const auto& file : broken) file->give_lease_up(deadline);
}

}  // namespace ckpt
