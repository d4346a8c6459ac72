// The thread that hears of broken leases and gives them up.
#pragma once

#include <memory>
#include <string>

#include "file.h"

namespace ckpt {

// A broken lease makes the kernel send a signal. It is a real-time signal here, directed at this
// thread, which alone blocks it and takes it with sigtimedwait: no handler is installed and the
// rest of the process sees nothing.
class LeaseWatch {
 public:
  // Starts the thread at first use; it lives as long as the process.
  static LeaseWatch& instance();

  // Before F_SETLEASE: whom the kernel tells about this file.
  void direct_signals(int fd, const std::string& path);
  void add(std::weak_ptr<File> file);
  // From the destructor of a file that was added.
  void remove(const File* file);

 private:
  struct State;
  LeaseWatch();
  void run();
  void give_up_broken();
  State& state_;
};

}  // namespace ckpt
