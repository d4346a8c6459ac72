// The thread that hears of broken leases and gives them up.
#pragma once

#include <memory>
#include <string>

#include "file.h"

namespace ckpt {

// A broken lease makes the kernel send a signal. It is a real-time signal here, directed at this
// thread, which alone blocks it and takes it with sigtimedwait: no handler is installed and the
// rest of the process sees nothing. It never waits for one file's readers: each broken lease is
// given up when its own have left, or 20 seconds after its own break.
class LeaseWatch {
 public:
  // Starts the thread at first use; it lives as long as the process.
  static LeaseWatch& instance();

  // Before F_SETLEASE: whom the kernel tells about this file.
  void direct_signals(int fd, const std::string& path);
  void add(std::weak_ptr<File> file);
  // From the destructor of a file that was added.
  void remove(const File* file);
  // A reader has left a file whose gate is closed.
  void wake();
  // How long readers have after a break, 20 seconds at first: tests do not wait as long.
  void set_readers_leave(Clock::duration duration);

 private:
  struct State;
  LeaseWatch();
  void run();
  // Closes the gates of broken leases; true when leases are left that may break.
  bool close_gates();
  // Gives up what is broken and has no readers any more, or had them for too long. How long the
  // thread may sleep then; max(): until a signal.
  Clock::duration give_up_broken();
  State& state_;
};

}  // namespace ckpt
