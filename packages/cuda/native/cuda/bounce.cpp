#include "bounce.h"

#include <chrono>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <thread>

#include "buffer.h"
#include "stream.h"
#include "threads.h"

namespace ckpt {

static_assert(Bounce::kChunkBytes <= kReadBytesMax, "a chunk is one read");

namespace {

// 64 MiB: 1.6 ms of a network of 40 GB/s.
constexpr size_t kSlots = 16;
constexpr std::chrono::microseconds kPoll{20};

}  // namespace

// One thread, which looks at the network and at the devices: neither calls it.
class Bounce::Pump {
 public:
  explicit Pump(std::shared_ptr<Buffer> memory) : memory_(std::move(memory)), slots_(kSlots) {}
  const std::shared_ptr<Buffer>& memory() const noexcept { return memory_; }
  void set_registered(Ucx::Memory registered) { registered_ = registered; }

  void add(const Chunks& chunks) {
    std::lock_guard lock(mutex_);
    queue_.insert(queue_.end(), chunks.begin(), chunks.end());
    wanted_.notify_one();
  }
  void stop() {
    std::lock_guard lock(mutex_);
    stopped_ = true;
    wanted_.notify_one();
  }
  void run() {
    while (wait_for_work()) {
      bool moved = false;
      for (size_t i = 0; i < kSlots; i++) moved = step(i) || moved;
      if (!moved) std::this_thread::sleep_for(kPoll);
    }
  }

 private:
  struct Slot {
    std::shared_ptr<BounceChunk> chunk;  // null: it is free
    UcxWorker::Pending pending;          // null: the bytes are there
  };

  // False: it ends.
  bool wait_for_work() {
    std::unique_lock lock(mutex_);
    if (busy_ == 0) wanted_.wait(lock, [this] { return stopped_ || !queue_.empty(); });
    return busy_ > 0 || !queue_.empty();
  }

  std::shared_ptr<BounceChunk> next() {
    std::lock_guard lock(mutex_);
    if (queue_.empty()) return nullptr;
    auto chunk = std::move(queue_.front());
    queue_.pop_front();
    return chunk;
  }

  bool step(size_t index) {
    Slot& slot = slots_[index];
    if (slot.chunk == nullptr) return begin(slot, index);
    if (slot.pending != nullptr) {
      if (!slot.pending->completion.done()) return false;
      end_read(slot);
      return true;
    }
    const BounceChunk& chunk = *slot.chunk;
    if (!chunk.left || (chunk.until != nullptr && !chunk.until->settled())) return false;
    busy_--;
    slot.chunk = nullptr;
    return true;
  }

  bool begin(Slot& slot, size_t index) {
    const auto chunk = next();
    if (chunk == nullptr) return false;
    if (chunk->left) return true;  // behind an error of the stream
    uint8_t* to = memory_->address() + index * kChunkBytes;
    try {
      slot.pending = chunk->from->get(chunk->offset, to, chunk->bytes, registered_);
    } catch (const Error& error) {
      chunk->failure = error;
      open(*chunk);
      return true;
    }
    chunk->slot = to;
    slot.chunk = chunk;
    busy_++;
    return true;
  }

  static void end_read(Slot& slot) {
    try {
      std::exchange(slot.pending, nullptr)->completion.check();
    } catch (const Error& error) {
      slot.chunk->failure = error;
    }
    open(*slot.chunk);
  }

  static void open(BounceChunk& chunk) {
    Wakes wakes;
    chunk.there.open(wakes);
    CudaStream::wake(std::move(wakes));
  }

  const std::shared_ptr<Buffer> memory_;
  Ucx::Memory registered_ = nullptr;
  std::mutex mutex_;
  std::condition_variable wanted_;
  std::deque<std::shared_ptr<BounceChunk>> queue_;
  bool stopped_ = false;

  // Of the thread only.
  std::vector<Slot> slots_;
  size_t busy_ = 0;
};

Bounce::Bounce(UcxWorker& worker)
    : worker_(worker),
      pump_(std::make_shared<Pump>(Buffer::allocate(kSlots * kChunkBytes, 0))) {
  const auto& memory = pump_->memory();
  registered_ = worker_.map(memory->address(), memory->bytes(), false);
  pump_->set_registered(registered_);
  start_thread("ckpt-bounce", [pump = pump_] { pump->run(); }).detach();
}

// There is no chunk any more, or the P2p would be there still: it may be its thread that lets the
// last one go, so that nobody waits for the thread.
Bounce::~Bounce() {
  pump_->stop();
  worker_.unmap(registered_);
}

void Bounce::read(const Chunks& chunks) { pump_->add(chunks); }

}  // namespace ckpt
