#include "stream.h"

#include <algorithm>

#include "buffer.h"
#include "copy.h"
#include "event.h"
#include "h2d.h"
#include "memory.h"
#include "peers.h"
#include "poller.h"
#include "signals.h"

namespace ckpt {
namespace {

constexpr size_t kHeldMax = 1u << 20;

// From this on a piece is worth a call.
constexpr uint64_t kLargePieceBytes = 64 << 10;

bool all_large(const std::vector<ckpt_copy_piece>& pieces) {
  return std::all_of(pieces.begin(), pieces.end(), [](const ckpt_copy_piece& piece) {
    return piece.bytes >= kLargePieceBytes;
  });
}

// The kernel's table of pieces goes to the device behind whatever else host memory is copied there;
// calls have none.
void enqueue_each(cudaStream_t stream, const CudaMemory& to, const CudaMemory& from,
                  const std::vector<ckpt_copy_piece>& pieces) {
  const int target = static_cast<int>(to.device());
  const int source = static_cast<int>(from.device());
  if (target != source) {
    let_devices_meet(to.device(), from.device());
    use_device(to.device());
  }
  for (const ckpt_copy_piece& piece : pieces) {
    uint8_t* const there = to.at(piece.dst_offset);
    const uint8_t* const here = from.at(piece.src_offset);
    check_cuda(target == source
                   ? cudaMemcpyAsync(there, here, piece.bytes, cudaMemcpyDeviceToDevice, stream)
                   : cudaMemcpyPeerAsync(there, target, here, source, piece.bytes, stream),
               "copying between device allocations");
  }
}

}  // namespace

CudaStream::CudaStream(uint32_t device) : Stream(device) {
  use_device(device);
  means_ = h2d_means(device);
  check_cuda(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "cudaStreamCreate");
}

CudaStream::~CudaStream() {
  if (cudaSetDevice(static_cast<int>(device())) == cudaSuccess) cudaStreamDestroy(stream_);
}

void CudaStream::close() {
  {
    std::unique_lock lock(mutex_);
    closed_ = true;
    not_held_.wait(lock, [this] { return held_.empty(); });
  }
  use_device(device());
  const cudaError_t error = cudaStreamSynchronize(stream_);
  release_complete();
  check_cuda(error, "the work in the stream");
}

void CudaStream::add(std::vector<Work> works) {
  Wakes wakes;
  {
    std::lock_guard lock(mutex_);
    if (closed_) fail(CKPT_ERR_STATE, "the stream was destroyed");
    if (held_.size() + works.size() > kHeldMax) {
      fail(CKPT_ERR_MEMORY, "%zu pieces of work are held", held_.size());
    }
    for (Work& work : works) held_.push_back(std::move(work));
    go_on_locked(wakes);
  }
  wake(std::move(wakes));
}

// One stream at a time, so that no thread holds two streams' locks.
void CudaStream::wake(Wakes wakes) {
  while (!wakes.empty()) {
    const auto stream = std::move(wakes.back());
    wakes.pop_back();
    std::lock_guard lock(stream->mutex_);
    stream->go_on_locked(wakes);
  }
}

void CudaStream::go_on_locked(Wakes& wakes) {
  while (!held_.empty()) {
    Work& next = held_.front();
    const bool left_out = error_ && next.after == After::success;
    if (!left_out && next.gate) {
      if (!next.gate->passes(next.waits ? nullptr : shared_from_this())) {
        next.waits = true;
        return;
      }
    }
    const Work work = std::move(next);
    held_.pop_front();
    if (!left_out) run_locked(work, wakes);
  }
  not_held_.notify_all();
}

void CudaStream::run_locked(const Work& work, Wakes& wakes) {
  try {
    use_device(device());
    Turn turn{*this, stream_, error_, wakes};
    work.enqueue(turn);
  } catch (const Error& error) {
    if (!error_) error_ = std::make_shared<const Error>(error);
  } catch (const std::exception& error) {
    if (!error_) error_ = std::make_shared<const Error>(CKPT_ERR_DEVICE, error.what());
  }
}

void CudaStream::record(std::shared_ptr<Mark> mark) {
  add({{After::error_too, [mark = std::move(mark)](Turn& turn) {
          mark->record(turn.stream, turn.error, turn.wakes);
        }}});
}

void CudaStream::wait_event(Event& event) {
  auto mark = static_cast<CudaEvent&>(event).last();
  if (mark == nullptr) return;
  std::shared_ptr<Gate> recorded(mark, &mark->recorded());
  add({{After::success,
        [mark = std::move(mark)](Turn& turn) { mark->make_wait(turn.stream); },
        std::move(recorded)}});
}

void CudaStream::sync(Signal* signal, uint32_t timeout_ms) {
  const auto mark = std::make_shared<Mark>(device());
  record(mark);
  mark->wait(signal, timeout_ms, "stream sync");
  release_complete();
  if (!mark->error()) return;
  {
    std::lock_guard lock(mutex_);
    if (error_ == mark->error()) error_ = nullptr;  // it is told now
  }
  throw Error(*mark->error());
}

// kept_ has a lock of its own, because mutex_ is held while CUDA waits for room in the device's
// queue.
void CudaStream::keep_locked(Objects objects) {
  bool first = false;
  try {
    Wakes nobody;
    auto until = std::make_unique<Mark>(device());
    until->record(stream_, nullptr, nobody);
    if (until->error()) throw Error(*until->error());
    std::lock_guard lock(kept_mutex_);
    first = kept_.empty();
    kept_.push_back({std::move(until), std::move(objects)});
  } catch (...) {
    cudaStreamSynchronize(stream_);
    throw;
  }
  if (!first) return;
  Poller::releases().add([weak = weak_from_this()] {
    const auto stream = weak.lock();
    return !stream || stream->release_complete();
  });
}

// True when nothing is kept any more. Whoever returns from here knows that what finished work has
// used is let go, also where another thread does that. Freeing takes time: not under kept_mutex_.
bool CudaStream::release_complete() {
  std::lock_guard releasing(releasing_);
  std::vector<Kept> complete;
  std::unique_lock lock(kept_mutex_);
  while (!kept_.empty() && kept_.front().until->settled()) {
    complete.push_back(std::move(kept_.front()));
    kept_.pop_front();
  }
  const bool empty = kept_.empty();
  lock.unlock();
  complete.clear();
  return empty;
}

void CudaStream::copy_h2d(std::shared_ptr<Memory> to, std::shared_ptr<Buffer> from,
                          const CopyRows& rows) {
  add({{After::success, [to = std::static_pointer_cast<CudaMemory>(std::move(to)),
                         from = std::move(from), rows](Turn& turn) {
          turn.use({to, from, enter_file(*from)}, [&] {
            enqueue_h2d(turn.stream, to->at(rows.to_offset), *from, rows, turn.owner.means_);
          });
        }}});
}

void CudaStream::copy_h2d_batch(std::vector<BatchCopy> copies) {
  add({{After::success, [copies = std::move(copies)](Turn& turn) {
          Objects used;
          H2dBatch batch(turn.owner.means_);
          for (const BatchCopy& copy : copies) {
            used.push_back(copy.to);
            used.push_back(copy.from);
            const auto& to = static_cast<const CudaMemory&>(*copy.to);
            batch.add(to.at(copy.rows.to_offset), *copy.from, copy.rows);
          }
          for (auto& reader : batch.readers()) used.push_back(std::move(reader));
          turn.use(std::move(used), [&] { batch.enqueue(turn.stream); });
        }}});
}

void CudaStream::copy_device(std::shared_ptr<Memory> to, std::shared_ptr<Memory> from,
                             std::vector<ckpt_copy_piece> pieces) {
  add({{After::success, [to = std::static_pointer_cast<CudaMemory>(std::move(to)),
                         from = std::static_pointer_cast<CudaMemory>(std::move(from)),
                         pieces = std::move(pieces)](Turn& turn) {
          turn.use({to, from}, [&] {
            if (to->device() != from->device() || all_large(pieces)) {
              enqueue_each(turn.stream, *to, *from, pieces);
            } else {
              enqueue_pieces(turn.stream, to->at(0), from->at(0), pieces);
            }
          });
        }}});
}

}  // namespace ckpt
