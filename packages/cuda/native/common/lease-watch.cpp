#include "lease-watch.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <condition_variable>
#include <iterator>
#include <mutex>
#include <vector>

#include "threads.h"

namespace ckpt {
namespace {

// The kernel waits /proc/sys/fs/lease-break-time (45 s) before it takes a lease away.
constexpr std::chrono::seconds kReadersLeave{20};
// A break that was not heard of (a full signal queue, say) is found this late at most.
constexpr std::chrono::seconds kRescan{1};

int lease_signal() { return SIGRTMIN + 12; }

timespec timespec_of(Clock::duration duration) {
  using namespace std::chrono;
  const auto ns = duration_cast<nanoseconds>(std::max(duration, Clock::duration::zero())).count();
  return {static_cast<time_t>(ns / 1000000000), static_cast<long>(ns % 1000000000)};
}

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
  Clock::duration readers_leave = kReadersLeave;
  // Broken, with their gates closed; this thread's own. Each has its own deadline, so that nobody
  // waits for the readers of another file.
  struct Leaving {
    std::shared_ptr<File> file;
    Clock::time_point deadline;
  };
  std::vector<Leaving> leaving;
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
  wake();
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
    const Clock::duration wait = give_up_broken();
    const timespec timeout = timespec_of(wait);
    sigtimedwait(&set, nullptr, wait == Clock::duration::max() ? nullptr : &timeout);
  }
}

void LeaseWatch::wake() { pthread_kill(state_.thread, lease_signal()); }

void LeaseWatch::set_readers_leave(Clock::duration duration) {
  std::lock_guard lock(state_.mutex);
  state_.readers_leave = duration;
}

bool LeaseWatch::close_gates() {
  std::lock_guard lock(state_.mutex);
  auto& files = state_.files;
  const auto deadline = Clock::now() + state_.readers_leave;
  for (size_t i = 0; i < files.size();) {
    if (!files[i].file->lease_broken()) {
      i++;
      continue;
    }
    if (auto file = files[i].owned.lock()) {
      file->gate_.close();
      state_.leaving.push_back({std::move(file), deadline});
    }
    files[i] = std::move(files.back());
    files.pop_back();
  }
  return !files.empty();
}

Clock::duration LeaseWatch::give_up_broken() {
  // All gates first: what one file's end takes must not let readers in elsewhere.
  const bool any = close_gates();
  auto& leaving = state_.leaving;
  const auto now = Clock::now();
  const auto stays = [now](const State::Leaving& one) {
    return now < one.deadline && !one.file->gate_.empty();
  };
  const auto first = std::partition(leaving.begin(), leaving.end(), stays);
  std::vector<State::Leaving> left(std::make_move_iterator(first),
                                   std::make_move_iterator(leaving.end()));
  leaving.erase(first, leaving.end());
  for (const auto& one : left) one.file->give_lease_up();
  Clock::duration wait = any ? kRescan : Clock::duration::max();
  for (const auto& one : leaving) {
    // The last reader to leave wakes this thread; a full signal queue would keep it from that.
    wait = std::min<Clock::duration>({wait, kRescan, one.deadline - now});
  }
  return wait;
}

}  // namespace ckpt
