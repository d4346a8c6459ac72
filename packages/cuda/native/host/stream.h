// Streams of the host library, one thread each, and events.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>

#include "common/backend.h"
#include "common/completion.h"
#include "memory.h"

namespace ckpt {

class HostStream : public Stream {
 public:
  explicit HostStream(uint32_t device);
  ~HostStream() override;

  void wait_event(Event& event) override;
  void sync(Signal* signal, uint32_t timeout_ms) override;
  void copy_h2d(std::shared_ptr<Memory> to, std::shared_ptr<Buffer> from,
                const CopyRows& rows) override;
  void copy_remote(std::shared_ptr<Memory> to, uint64_t to_offset, std::shared_ptr<P2pRemote> from,
                   uint64_t from_offset, uint64_t bytes) override;
  void copy_device(std::shared_ptr<Memory> to, std::shared_ptr<Memory> from,
                   std::vector<ckpt_copy_piece> pieces) override;
  void close() override;

  // `completion` ends when the work before it has, with the stream's error.
  void record(std::shared_ptr<Completion> completion);

  enum class After { success, error_too };
  // Runs `work` on the stream's thread; an Error that it throws becomes the stream's. With
  // After::success it is left out while the stream has an error.
  void enqueue(After after, std::function<void()> work);

  // For work that is running on the stream's thread.
  const std::optional<Error>& error() const noexcept { return error_; }
  // Calls part(offset, count) for consecutive parts of `bytes`, at the configured rate.
  void in_chunks(uint64_t bytes, const std::function<void(uint64_t, uint64_t)>& part);

 private:
  struct Work {
    After after = After::success;
    std::function<void()> run;
  };
  void run();
  void run_work(const Work& work);

  std::mutex mutex_;
  std::condition_variable wanted_;
  std::deque<Work> queue_;
  bool closed_ = false;

  // Of the stream's thread only.
  std::optional<Error> error_;
  Clock::time_point copied_until_{};

  std::once_flag joined_;
  std::thread thread_;
};

class HostEvent : public Event {
 public:
  explicit HostEvent(uint32_t device) : Event(device) {}
  void record(Stream& stream) override;
  void notify(std::shared_ptr<Signal> signal) override;
  bool query() override;
  void wait(Signal* signal, uint32_t timeout_ms) override;

  // Null when it was never recorded.
  std::shared_ptr<Completion> last();

 private:
  std::mutex mutex_;
  std::shared_ptr<Completion> last_;
};

}  // namespace ckpt
