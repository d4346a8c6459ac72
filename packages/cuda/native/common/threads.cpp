#include "threads.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>
#include <vector>

namespace ckpt {

std::thread start_thread(const char* name, std::function<void()> body) {
  sigset_t blocked;
  sigset_t before;
  sigfillset(&blocked);
  for (int fault : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGABRT}) sigdelset(&blocked, fault);
  pthread_sigmask(SIG_SETMASK, &blocked, &before);
  std::thread thread;
  try {
    thread = std::thread(std::move(body));
  } catch (...) {
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    throw;
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  pthread_setname_np(thread.native_handle(), name);
  return thread;
}

uint32_t usable_threads(uint32_t limit) {
  cpu_set_t set;
  const int count = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
  return std::clamp<uint32_t>(static_cast<uint32_t>(count), 1, std::max(limit, 1u));
}

void parallel_for(uint64_t count, uint32_t threads, const std::function<void(uint64_t)>& body) {
  std::atomic<uint64_t> next{0};
  std::mutex mutex;
  std::exception_ptr first;
  auto work = [&] {
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
  std::vector<std::thread> others;
  const uint64_t wanted = std::min<uint64_t>(std::max(threads, 1u), count);
  try {
    while (others.size() + 1 < wanted) others.push_back(start_thread("ckpt-part", work));
  } catch (...) {
    // Fewer threads than asked for: the work is done all the same.
  }
  work();
  for (std::thread& thread : others) thread.join();
  if (first) std::rethrow_exception(first);
}

}  // namespace ckpt
