#include "threads.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>
#include <vector>

namespace ckpt {

namespace {

// A thread that is started meanwhile has only the signals of faults.
class SignalsBlocked {
 public:
  SignalsBlocked() {
    sigset_t blocked;
    sigfillset(&blocked);
    for (int fault : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGABRT}) {
      sigdelset(&blocked, fault);
    }
    pthread_sigmask(SIG_SETMASK, &blocked, &before_);
  }
  ~SignalsBlocked() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }
  SignalsBlocked(const SignalsBlocked&) = delete;

 private:
  sigset_t before_;
};

// Threads for one parallel_for. A thread's stack is mapped when it starts and unmapped when it ends,
// which waits for everybody who populates memory, and they for it: so all of them are started before
// any begins, and their stacks are small enough for libc to keep (it keeps 40 MiB).
class PartThreads {
 public:
  explicit PartThreads(const std::function<void()>& work) : work_(work) {}

  // Fewer when the system has no more: the work is done all the same.
  void start(uint64_t count) {
    threads_.reserve(count);  // nothing may throw when one has started
    SignalsBlocked blocked;
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, kStackBytes);
    for (pthread_t thread; threads_.size() < count; threads_.push_back(thread)) {
      if (pthread_create(&thread, &attributes, &run, this) != 0) break;
      pthread_setname_np(thread, "ckpt-part");
    }
    pthread_attr_destroy(&attributes);
  }

  void go() {
    go_ = true;
    go_.notify_all();
  }

  void join() {
    for (const pthread_t thread : threads_) pthread_join(thread, nullptr);
  }

 private:
  static constexpr size_t kStackBytes = 1u << 20;

  static void* run(void* self) {
    auto& threads = *static_cast<PartThreads*>(self);
    threads.go_.wait(false);
    threads.work_();
    return nullptr;
  }

  const std::function<void()>& work_;
  std::atomic<bool> go_{false};
  std::vector<pthread_t> threads_;
};

}  // namespace

std::thread start_thread(const char* name, std::function<void()> body) {
  SignalsBlocked blocked;
  std::thread thread(std::move(body));
  pthread_setname_np(thread.native_handle(), name);
  return thread;
}

uint32_t usable_threads(uint32_t limit) {
  cpu_set_t set;
  // of the first thread: the others may be bound to some of the processors
  const int count = sched_getaffinity(getpid(), sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
  return std::clamp<uint32_t>(static_cast<uint32_t>(count), 1, std::max(limit, 1u));
}

void parallel_for(uint64_t count, uint32_t threads, const std::function<void(uint64_t)>& body) {
  std::atomic<uint64_t> next{0};
  std::mutex mutex;
  std::exception_ptr first;
  const std::function<void()> work = [&] {
    for (uint64_t index = next++; index < count; index = next++) {
      try {
        body(index);
      } catch (...) {
        next = count;
        std::lock_guard lock(mutex);
        if (!first) first = std::current_exception();
      }
    }
  };
  PartThreads others(work);
  others.start(std::min<uint64_t>(std::max(threads, 1u), count) - (count > 0 ? 1 : 0));
  others.go();
  work();
  others.join();
  if (first) std::rethrow_exception(first);
}

}  // namespace ckpt
