#include "stream.h"

#include <algorithm>

#include "common/buffer.h"
#include "common/p2p.h"
#include "common/threads.h"
#include "copy.h"

namespace ckpt {
namespace {

constexpr size_t kQueuedMax = 1u << 20;
constexpr uint64_t kChunkBytes = 1ull << 20;
// A throttled stream copies in parts of 5 ms, so that its events are not late by a whole chunk.
constexpr uint64_t kThrottledChunksPerSecond = 200;
constexpr uint64_t kThrottledChunkBytesMin = 4096;

}  // namespace

HostStream::HostStream(uint32_t device) : Stream(device) {
  thread_ = start_thread("ckpt-stream", [this] { run(); });
}

HostStream::~HostStream() { close(); }

void HostStream::close() {
  {
    std::lock_guard lock(mutex_);
    closed_ = true;
    wanted_.notify_all();
  }
  std::call_once(joined_, [this] { thread_.join(); });
}

void HostStream::enqueue(After after, std::function<void()> work) {
  std::lock_guard lock(mutex_);
  if (closed_) fail(CKPT_ERR_STATE, "the stream was destroyed");
  if (queue_.size() == kQueuedMax)
    fail(CKPT_ERR_MEMORY, "%zu pieces of work are queued", kQueuedMax);
  queue_.push_back({after, std::move(work)});
  wanted_.notify_one();
}

void HostStream::run() {
  for (;;) {
    Work work;
    {
      std::unique_lock lock(mutex_);
      wanted_.wait(lock, [this] { return closed_ || !queue_.empty(); });
      if (queue_.empty()) return;
      work = std::move(queue_.front());
      queue_.pop_front();
    }
    run_work(work);
  }
}

void HostStream::run_work(const Work& work) {
  if (error_ && work.after == After::success) return;
  try {
    work.run();
  } catch (const Error& error) {
    if (!error_) error_ = error;
  } catch (const std::exception& error) {
    if (!error_) error_ = Error(CKPT_ERR_DEVICE, error.what());
  }
}

void HostStream::record(std::shared_ptr<Completion> completion) {
  enqueue(After::error_too, [this, completion = std::move(completion)] {
    if (error_) {
      completion->complete(error_->status(), error_->text());
    } else {
      completion->complete(CKPT_OK, "");
    }
  });
}

void HostStream::wait_event(Event& event) {
  std::shared_ptr<Completion> last = static_cast<HostEvent&>(event).last();
  if (last == nullptr) return;
  // It always ends: a stream runs all its work before it ends, and the only work that waits for
  // others, a broadcast, ends when its group is aborted or destroyed.
  enqueue(After::success,
          [last = std::move(last)] { last->wait(nullptr, UINT32_MAX, "an event"); });
}

void HostStream::sync(Signal* signal, uint32_t timeout_ms) {
  struct Sync {
    std::mutex mutex;
    bool given_up = false;
    Completion completion;
  };
  auto state = std::make_shared<Sync>();
  enqueue(After::error_too, [this, state] {
    std::lock_guard lock(state->mutex);
    if (state->given_up) return;  // nobody would hear of the error
    if (error_) {
      state->completion.complete(error_->status(), error_->text());
      error_.reset();
    } else {
      state->completion.complete(CKPT_OK, "");
    }
  });
  try {
    state->completion.wait(signal, timeout_ms, "stream sync");
  } catch (const Error&) {
    std::lock_guard lock(state->mutex);
    if (state->completion.done()) {
      state->completion.check();
      return;
    }
    state->given_up = true;
    throw;
  }
}

void HostStream::in_chunks(uint64_t bytes, const std::function<void(uint64_t, uint64_t)>& part) {
  const uint64_t rate = device_copy_bytes_per_second();
  const uint64_t chunk_bytes = rate == 0 ? kChunkBytes
                                         : std::clamp(rate / kThrottledChunksPerSecond,
                                                      kThrottledChunkBytesMin, kChunkBytes);
  for (uint64_t done = 0; done < bytes;) {
    const uint64_t count = std::min(chunk_bytes, bytes - done);
    part(done, count);
    done += count;
    if (rate == 0) continue;
    const std::chrono::duration<double> cost(static_cast<double>(count) /
                                             static_cast<double>(rate));
    copied_until_ = std::max(copied_until_, Clock::now() - std::chrono::milliseconds(5)) +
                    std::chrono::duration_cast<Clock::duration>(cost);
    std::this_thread::sleep_until(copied_until_);
  }
}

// The chunks are of the rows' bytes one behind another, so that a throttled stream sleeps as often
// for many short rows as for one.
void HostStream::copy_h2d(std::shared_ptr<Memory> to, std::shared_ptr<Buffer> from,
                          const CopyRows& rows) {
  enqueue(After::success, [this, to = std::static_pointer_cast<HostMemory>(std::move(to)),
                           from = std::move(from), rows] {
    in_chunks(rows.width * rows.height, [&](uint64_t offset, uint64_t count) {
      for (const uint64_t end = offset + count; offset < end;) {
        const uint64_t row = offset / rows.width, column = offset % rows.width;
        const uint64_t bytes = std::min(rows.width - column, end - offset);
        const uint64_t from_offset = rows.from_offset + row * rows.from_pitch + column;
        uint8_t* target = to->address() + rows.to_offset + row * rows.to_pitch + column;
        if (from->file() != nullptr) {
          from->copy_out(from_offset, bytes, target);
        } else {
          copy_bytes(target, from->address() + from_offset, bytes);
        }
        offset += bytes;
      }
    });
  });
}

// Straight to where the bytes belong. At full rate it is one read, which keeps several gets going.
void HostStream::copy_remote(std::shared_ptr<Memory> to, uint64_t to_offset,
                             std::shared_ptr<P2pRemote> from, uint64_t from_offset,
                             uint64_t bytes) {
  enqueue(After::success, [this, to = std::static_pointer_cast<HostMemory>(std::move(to)),
                           from = std::move(from), to_offset, from_offset, bytes] {
    uint8_t* target = to->address() + to_offset;
    if (device_copy_bytes_per_second() == 0) {
      from->read(from_offset, target, bytes);
      return;
    }
    in_chunks(bytes, [&](uint64_t offset, uint64_t count) {
      from->read(from_offset + offset, target + offset, count);
    });
  });
}

void HostStream::copy_device(std::shared_ptr<Memory> to, std::shared_ptr<Memory> from,
                             std::vector<ckpt_copy_piece> pieces) {
  enqueue(After::success, [this, to = std::static_pointer_cast<HostMemory>(std::move(to)),
                           from = std::static_pointer_cast<HostMemory>(std::move(from)),
                           pieces = std::move(pieces)] {
    for (const ckpt_copy_piece& piece : pieces) {
      in_chunks(piece.bytes, [&](uint64_t offset, uint64_t count) {
        copy_bytes(to->address() + piece.dst_offset + offset,
                   from->address() + piece.src_offset + offset, count);
      });
    }
  });
}

void HostEvent::record(Stream& stream) {
  auto completion = std::make_shared<Completion>();
  static_cast<HostStream&>(stream).record(completion);
  std::lock_guard lock(mutex_);
  last_ = std::move(completion);
}

std::shared_ptr<Completion> HostEvent::last() {
  std::lock_guard lock(mutex_);
  return last_;
}

void HostEvent::notify(std::shared_ptr<Signal> signal) {
  const auto completion = last();
  if (completion == nullptr) {
    signal->raise(0);
  } else {
    completion->notify(std::move(signal));
  }
}

bool HostEvent::query() {
  const auto completion = last();
  if (completion == nullptr) return true;
  completion->check();
  return completion->done();
}

void HostEvent::wait(Signal* signal, uint32_t timeout_ms) {
  const auto completion = last();
  if (completion != nullptr) completion->wait(signal, timeout_ms, "event");
}

}  // namespace ckpt
