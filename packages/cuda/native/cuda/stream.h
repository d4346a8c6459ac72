// Streams: the order of work, its errors, and what the work uses until it has ended.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "backend.h"
#include "cuda-api.h"
#include "gate.h"
#include "h2d.h"
#include "mark.h"

namespace ckpt {

class CudaStream : public Stream, public std::enable_shared_from_this<CudaStream> {
 public:
  explicit CudaStream(uint32_t device);
  ~CudaStream() override;
  void close() override;

  void wait_event(Event& event) override;
  void sync(Signal* signal, uint32_t timeout_ms) override;
  void copy_h2d(std::shared_ptr<Memory> to, std::shared_ptr<Buffer> from,
                const CopyRows& rows) override;
  void copy_h2d_batch(std::vector<BatchCopy> copies) override;
  void copy_remote(std::shared_ptr<Memory> to, uint64_t to_offset, std::shared_ptr<P2pRemote> from,
                   uint64_t from_offset, uint64_t bytes) override;
  void copy_device(std::shared_ptr<Memory> to, std::shared_ptr<Memory> from,
                   std::vector<ckpt_copy_piece> pieces) override;
  // The mark gets the stream's error at this point.
  void record(std::shared_ptr<Mark> mark);

  using Objects = std::vector<std::shared_ptr<const void>>;
  // What work gets when its turn has come. The stream's device is current.
  struct Turn {
    CudaStream& owner;
    cudaStream_t stream;
    const std::shared_ptr<const Error>& error;
    Wakes& wakes;
    // Enqueues with `enqueue`; the objects live until the device has done that.
    template <class Enqueue>
    void use(Objects objects, Enqueue&& enqueue) {
      try {
        enqueue();
      } catch (...) {
        owner.keep_locked(std::move(objects));  // a part of it may be on its way
        throw;
      }
      owner.keep_locked(std::move(objects));
    }
  };
  enum class After { success, error_too };
  struct Work {
    // With success it is left out while the stream has an error.
    After after;
    // Enqueues. An Error that it throws becomes the stream's.
    std::function<void(Turn&)> enqueue;
    // The stream is held until it opens; null: it is not.
    std::shared_ptr<Gate> gate = nullptr;
    bool waits = false;  // the gate knows the stream
  };
  // In this order, nothing in between.
  void add(std::vector<Work> works);

  // Lets those streams go on, and those that come free by it. Called with no lock held.
  static void wake(Wakes wakes);

 private:
  struct Kept {
    std::unique_ptr<Mark> until;
    Objects objects;
  };
  void go_on_locked(Wakes& wakes);
  void run_locked(const Work& work, Wakes& wakes);
  void keep_locked(Objects objects);
  bool release_complete();

  cudaStream_t stream_ = nullptr;
  H2dMeans means_{};
  std::mutex mutex_;
  std::condition_variable not_held_;
  bool closed_ = false;
  std::deque<Work> held_;
  std::shared_ptr<const Error> error_;

  std::mutex releasing_;   // taken before kept_mutex_
  std::mutex kept_mutex_;  // taken behind mutex_
  std::deque<Kept> kept_;
};

}  // namespace ckpt
